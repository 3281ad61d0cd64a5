#include "calibrator/evaluate.h"

#include <cmath>

#include "bundle/test_model.h"
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

// Overlapping windows of one text: what counts is the tail of each, read off the definitions.
TEST(EvaluateTest, SlidingWindowsCountOnlyTheirTails) {
  Windows windows = RandomWindows(4, 300);
  windows.stride = 70;
  TableLogits teacher(windows, 6, 3), model(windows, 7, 0.5, &teacher);
  ThreadPool pool(2);
  const auto result = Measure({&teacher, &model}, {{0, 1}}, windows, pool);
  ASSERT_TRUE(result.ok()) << result.status();
  const Divergence& divergence = result->divergence[0];
  ASSERT_EQ(divergence.token_kl.size(), 300u + 3 * 70);
  double all_kl = 0;
  size_t token = 0;
  for (int32_t w = 0; w < 4; ++w) {
    const int32_t first = w == 0 ? 0 : 230;
    double loss = 0, kl = 0;
    for (int32_t t = 0; t < 300; ++t) {
      const float* a = teacher.row(w * 300 + t);
      const float* b = model.row(w * 300 + t);
      const double log_a = LogSum(a), log_b = LogSum(b);
      if (t + 1 < 300 && t + 1 >= first) loss += log_b - b[windows.window(w)[t + 1]];
      if (t < first) continue;
      double row_kl = 0;
      for (int i = 0; i < kVocab; ++i)
        row_kl += std::exp(a[i] - log_a) * ((a[i] - log_a) - (b[i] - log_b));
      EXPECT_NEAR(divergence.token_kl[token++], row_kl, 1e-5);
      kl += row_kl;
    }
    EXPECT_NEAR(result->loss[1][w], loss / (w == 0 ? 299 : 70), 1e-5);
    EXPECT_NEAR(divergence.window_kl[w], kl / (w == 0 ? 300 : 70), 1e-5);
    all_kl += kl;
  }
  EXPECT_NEAR(divergence.kl_mean, all_kl / (300 + 3 * 70), 1e-5);
}

// The engine keeps its own cache: tokens that do not count must be in it all the same.
TEST(EvaluateTest, TheEngineLooksBackAtTokensThatDoNotCount) {
  const IntegerModel model = MakeTestModel({.prefix_tokens = 1});
  CpuExecutorOptions options;
  options.threads = 2;
  options.max_step_tokens = options.max_step_logits = 32;
  const auto executor = CpuExecutor::Create(model, options);
  ASSERT_TRUE(executor.ok()) << executor.status();
  Windows windows = RandomWindows(3, 100);
  ThreadPool pool(2);
  ExecutorLogits whole(**executor), tails(**executor);
  const auto all = Measure({&whole}, {}, windows, pool);
  ASSERT_TRUE(all.ok()) << all.status();
  Windows sliding = windows;
  sliding.stride = 60;
  const auto some = Measure({&tails}, {}, sliding, pool);
  ASSERT_TRUE(some.ok()) << some.status();
  EXPECT_EQ(some->loss[0][0], all->loss[0][0]);
  for (int32_t w = 1; w < 3; ++w) {
    Windows head;  // the first 40 tokens of the window: predictions 1 .. 39
    head.tokens = 40;
    head.token_ids.assign(windows.window(w), windows.window(w) + 40);
    ExecutorLogits logits(**executor);
    const auto front = WindowLosses(logits, head, pool);
    ASSERT_TRUE(front.ok());
    EXPECT_NEAR(some->loss[0][w] * 60 + (*front)[0] * 39, all->loss[0][w] * 99, 1e-9);
  }
}

}  // namespace
}  // namespace fixpoint
