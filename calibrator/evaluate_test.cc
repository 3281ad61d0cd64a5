#include "calibrator/evaluate.h"

#include <cmath>

#include "calibrator/random.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

constexpr int32_t kVocab = 50;

// Logits from a table by (window, token).
class TableLogits : public LogitSource {
 public:
  TableLogits(const Windows& windows, uint64_t seed, double scale,
              const TableLogits* base = nullptr)
      : tokens_(windows.tokens), values_(windows.token_ids.size() * kVocab) {
    Random random(seed);
    for (size_t i = 0; i < values_.size(); ++i) {
      values_[i] = static_cast<float>(random.Normal() * scale + (base ? base->values_[i] : 0));
    }
  }
  int32_t vocab_size() const override { return kVocab; }
  absl::Status Start(const Windows&, int32_t first, int32_t) override {
    first_ = int64_t{first} * tokens_;
    return absl::OkStatus();
  }
  absl::Status Logits(int64_t begin, int64_t end, float* out) override {
    std::copy(values_.begin() + (first_ + begin) * kVocab,
              values_.begin() + (first_ + end) * kVocab, out);
    return absl::OkStatus();
  }
  const float* row(int64_t r) const { return values_.data() + r * kVocab; }

 private:
  int64_t tokens_, first_ = 0;
  std::vector<float> values_;
};

Windows RandomWindows(int32_t count, int32_t tokens) {
  Random random(3);
  Windows windows;
  windows.tokens = tokens;
  windows.token_ids.resize(int64_t{count} * tokens);
  for (int32_t& id : windows.token_ids) id = static_cast<int32_t>(random.Below(kVocab));
  return windows;
}

double LogSum(const float* row) {
  double sum = 0;
  for (int i = 0; i < kVocab; ++i) sum += std::exp(static_cast<double>(row[i]));
  return std::log(sum);
}

TEST(EvaluateTest, CompareEqualsTheDefinitions) {
  const Windows windows =
      RandomWindows(5, 300);  // several blocks of rows in a window, several windows in a batch
  TableLogits teacher(windows, 1, 3), model(windows, 2, 0.5, &teacher);
  ThreadPool pool(2);
  const auto result = Compare(teacher, {&model, &teacher}, windows, pool);
  ASSERT_TRUE(result.ok());
  double kl = 0;
  int64_t same = 0;
  for (int32_t w = 0; w < 5; ++w) {
    double loss = 0, teacher_loss = 0;
    for (int32_t t = 0; t < 300; ++t) {
      const float* a = teacher.row(w * 300 + t);
      const float* b = model.row(w * 300 + t);
      const double log_a = LogSum(a), log_b = LogSum(b);
      for (int i = 0; i < kVocab; ++i)
        kl += std::exp(a[i] - log_a) * ((a[i] - log_a) - (b[i] - log_b));
      same += std::max_element(a, a + kVocab) - a == std::max_element(b, b + kVocab) - b;
      if (t + 1 == 300) continue;
      loss += log_b - b[windows.window(w)[t + 1]];
      teacher_loss += log_a - a[windows.window(w)[t + 1]];
    }
    EXPECT_NEAR((*result)[0].loss[w], loss / 299, 1e-5);
    EXPECT_NEAR((*result)[0].teacher_loss[w], teacher_loss / 299, 1e-5);
    EXPECT_NEAR((*result)[1].loss[w], teacher_loss / 299, 1e-5);
  }
  EXPECT_NEAR((*result)[0].kl_mean, kl / 1500, 1e-5);
  EXPECT_EQ((*result)[0].top1_agreement, static_cast<double>(same) / 1500);
  EXPECT_NEAR((*result)[1].kl_mean, 0, 1e-9);
  EXPECT_EQ((*result)[1].top1_agreement, 1);
  const auto losses = WindowLosses(model, windows, pool);
  ASSERT_TRUE(losses.ok());
  for (int32_t w = 0; w < 5; ++w) EXPECT_NEAR((*losses)[w], (*result)[0].loss[w], 1e-6);
}

TEST(EvaluateTest, CachedLogitsGiveTheSameFigures) {
  const Windows windows = RandomWindows(3, 130);
  TableLogits teacher(windows, 4, 3), model(windows, 5, 0.3, &teacher);
  ThreadPool pool(2);
  const auto cached = CachedLogits::Create(teacher, windows, pool);
  ASSERT_TRUE(cached.ok());
  const auto direct = Compare(teacher, {&model}, windows, pool);
  const auto through_cache = Compare(**cached, {&model}, windows, pool);
  ASSERT_TRUE(direct.ok() && through_cache.ok());
  EXPECT_NEAR((*through_cache)[0].kl_mean, (*direct)[0].kl_mean, 1e-5);
  EXPECT_NEAR((*through_cache)[0].teacher_loss[2], (*direct)[0].teacher_loss[2], 1e-4);
}

TEST(EvaluateTest, RefusesTextWithoutAWindow) {
  Windows windows;
  windows.tokens = 10;
  TableLogits teacher(windows, 1, 1);
  ThreadPool pool(1);
  EXPECT_EQ(Compare(teacher, {}, windows, pool).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(EvaluateTest, RelativePerplexityIsPaired) {
  const RelativePerplexity same = RelativeTo({1, 5, 9}, {1.01, 5.01, 9.01});
  EXPECT_NEAR(same.percent, 100 * (std::exp(0.01) - 1), 1e-9);
  EXPECT_NEAR(same.standard_error_percent, 0, 1e-9);  // windows differ, differences do not
  const RelativePerplexity spread = RelativeTo({0, 0}, {0.01, 0.03});
  EXPECT_NEAR(spread.standard_error_percent, 100 * 0.01, 1e-9);
  EXPECT_NEAR(Perplexity({1, 3}), std::exp(2), 1e-12);
}

}  // namespace
}  // namespace fixpoint
