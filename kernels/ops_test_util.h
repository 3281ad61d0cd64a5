// What the tests of CPU levels share.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "gtest/gtest.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/ops.h"
#include "kernels/reference/reference_ops.h"
#include "kernels/test_data.h"

namespace fixpoint {

template <typename T>
testing::AssertionResult Same(const Aligned<T>& expected, const Aligned<T>& actual) {
  if (expected.size() != actual.size()) return testing::AssertionFailure() << "sizes differ";
  for (size_t i = 0; i < expected.size(); ++i) {
    if (expected[i] != actual[i]) {
      return testing::AssertionFailure()
             << "element " << i << ": expected " << +expected[i] << ", got " << +actual[i];
    }
  }
  return testing::AssertionSuccess();
}
inline testing::AssertionResult Same(const Site& expected, const Site& actual) {
  const testing::AssertionResult hi = Same(expected.hi, actual.hi);
  return hi ? Same(expected.lo, actual.lo) : hi;
}

// A test body that runs once for each level of this CPU beside the reference.
class LevelTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    level_ = FindOps(GetParam());
    ASSERT_NE(level_, nullptr);
    if (level_->thread_init != nullptr) level_->thread_init();
  }
  const Ops& level() const { return *level_; }
  const Ops& reference() const { return ReferenceOps(); }

 private:
  const Ops* level_ = nullptr;
};

// Every supported level but the reference.
inline std::vector<std::string> LevelNames() {
  std::vector<std::string> names;
  for (const absl::string_view name : SupportedOps()) {
    if (name != "reference") names.emplace_back(name);
  }
  return names;
}

#define FIXPOINT_INSTANTIATE_LEVELS(suite)                                 \
  INSTANTIATE_TEST_SUITE_P(Levels, suite, testing::ValuesIn(LevelNames()), \
                           [](const auto& info) { return std::string(info.param); })

}  // namespace fixpoint
