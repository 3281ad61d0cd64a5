#include "kernels/cpu/dispatch.h"

#include <cstdlib>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

class DispatchTest : public testing::Test {
 protected:
  void TearDown() override { unsetenv("FIXPOINT_ISA"); }
};

TEST_F(DispatchTest, ReferenceAndPortableRunEverywhere) {
  EXPECT_THAT(SupportedOps(), testing::IsSupersetOf({"reference", "portable"}));
}

TEST_F(DispatchTest, EverySupportedNameIsFound) {
  for (const absl::string_view name : SupportedOps()) {
    const Ops* ops = FindOps(name);
    ASSERT_NE(ops, nullptr) << name;
    EXPECT_EQ(name, ops->name);
  }
}

TEST_F(DispatchTest, UnknownNameIsNotFound) {
  EXPECT_EQ(FindOps("sse9"), nullptr);
  EXPECT_EQ(FindOps(""), nullptr);
}

TEST_F(DispatchTest, BestIsTheLastSupportedOne) {
  EXPECT_EQ(SupportedOps().back(), BestOps().name);
  EXPECT_STRNE(BestOps().name, "reference");
}

TEST_F(DispatchTest, WithoutTheVariableTheBestIsTaken) {
  unsetenv("FIXPOINT_ISA");
  EXPECT_EQ(SelectOps().value(), &BestOps());
  setenv("FIXPOINT_ISA", "", 1);
  EXPECT_EQ(SelectOps().value(), &BestOps());
}

TEST_F(DispatchTest, TheVariableForcesALevel) {
  setenv("FIXPOINT_ISA", "reference", 1);
  EXPECT_STREQ(SelectOps().value()->name, "reference");
  setenv("FIXPOINT_ISA", "portable", 1);
  EXPECT_STREQ(SelectOps().value()->name, "portable");
}

TEST_F(DispatchTest, UnknownValueIsRefusedByName) {
  setenv("FIXPOINT_ISA", "sse9", 1);
  const absl::Status status = SelectOps().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("FIXPOINT_ISA=sse9"));
}

TEST_F(DispatchTest, KnownButUnsupportedLevelIsRefusedByName) {
#ifdef FIXPOINT_X86_LEVELS
  constexpr bool kX86 = true;
#else
  constexpr bool kX86 = false;
#endif
#ifdef FIXPOINT_ARM_LEVELS
  constexpr bool kArm = true;
#else
  constexpr bool kArm = false;
#endif
  const std::pair<const char*, bool> levels[] = {
      {"avx2", kX86}, {"vnni", kX86}, {"amx", kX86}, {"neon", kArm}, {"i8mm", kArm}};
  for (const auto& [name, known] : levels) {
    if (FindOps(name) != nullptr) continue;
    setenv("FIXPOINT_ISA", name, 1);
    EXPECT_EQ(SelectOps().status().code(),
              known ? absl::StatusCode::kFailedPrecondition : absl::StatusCode::kInvalidArgument)
        << name;
  }
}

}  // namespace
}  // namespace fixpoint
