#include "calibrator/prefix_search.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/status_macros.h"
#include "calibrator/corpus.h"
#include "calibrator/prefix.h"
#include "calibrator/ranges.h"
#include "calibrator/statistics.h"
#include "calibrator/vector_loops.h"

namespace fixpoint {
namespace {

constexpr int32_t kStatisticsWindows = 8;
constexpr int32_t kHeldOutWindows = 4;
constexpr size_t kOutlierTokens = 3;
constexpr size_t kMaxPrefixTokens = 4;
// A value that many times the median of the rows' largest makes its token an outlier.
constexpr float kOutlierRatio = 10;
constexpr double kMinGain = 0.02;

// Counts, for each token id, the inputs of down_proj whose largest value is an outlier.
class OutlierTokens : public SiteObserver {
 public:
  explicit OutlierTokens(const Windows& windows) : windows_(windows) {}

  void OnSite(const SiteRows& rows) override {
    if (rows.site != LayerSite::kDownIn) return;
    std::vector<float> largest(rows.rows);
    std::vector<float> row(rows.depth);
    for (int64_t r = 0; r < rows.rows; ++r) {
      if (rows.type == GemmType::kBf16) {
        Vec().from_bf16(static_cast<const uint16_t*>(rows.hi) + r * rows.depth, rows.depth,
                        row.data());
        largest[r] = Vec().abs_max(row.data(), rows.depth);
      } else {
        largest[r] = Vec().abs_max(static_cast<const float*>(rows.hi) + r * rows.depth, rows.depth);
      }
    }
    std::vector<float> sorted = largest;
    std::nth_element(sorted.begin(), sorted.begin() + rows.rows / 2, sorted.end());
    const float limit = kOutlierRatio * sorted[rows.rows / 2];
    for (int64_t r = 0; r < rows.rows; ++r) {
      if (largest[r] > limit) ++counts_[windows_.token_ids[r]];
    }
  }

  std::vector<int32_t> Worst(size_t count) const {
    std::vector<std::pair<int64_t, int32_t>> order;
    for (const auto& [id, times] : counts_) order.emplace_back(-times, id);
    std::sort(order.begin(), order.end());
    std::vector<int32_t> ids;
    for (size_t i = 0; i < std::min(count, order.size()); ++i) ids.push_back(order[i].second);
    return ids;
  }

 private:
  const Windows& windows_;
  std::map<int32_t, int64_t> counts_;
};

absl::StatusOr<double> KlBehind(const FloatPrefix& prefix, const PrefixSearchInput& input,
                                const Windows& text, const Windows& held_out, FloatForward& student,
                                ThreadPool& pool) {
  StatisticsCollector collector(student.model().config(), pool.thread_count());
  for (int32_t i = 0; i < text.count(); ++i) {
    student.Run({.token_ids = text.window(i), .sequences = 1, .tokens = text.tokens},
                {.prefix = &prefix, .precise_activations = false, .statistics = &collector});
  }
  const Statistics statistics = collector.Result();
  Scales scales = ChooseScales(statistics, HeadClip::kMse);
  if (input.allow_int16) {
    for (size_t i = 0; i < scales.layers.size(); ++i) {
      scales.layers[i].down_in = ScaleSite(
          statistics.layers[i].linear[static_cast<int32_t>(LayerSite::kDownIn)], /*wide=*/true);
    }
  }
  ForwardLogits source(student, {.prefix = &prefix, .scales = &scales});
  ASSIGN_OR_RETURN(const std::vector<Comparison> result,
                   Compare(*input.teacher, {&source}, held_out, pool));
  return result[0].kl_mean;
}

}  // namespace

absl::StatusOr<PrefixSearchResult> SearchPrefix(const PrefixSearchInput& input,
                                                FloatForward& float_forward, FloatForward& student,
                                                ThreadPool& pool,
                                                const std::function<void(double)>& progress) {
  const Windows text = EvenWindows(*input.train, kStatisticsWindows);
  // The first ones, because the teacher's rows are counted from the front.
  Windows held_out = *input.held_out;
  held_out.token_ids.resize(int64_t{std::min(kHeldOutWindows, held_out.count())} * held_out.tokens);
  PrefixSearchResult result;
  const std::vector<int32_t>& start = input.start->token_ids;
  result.candidates.push_back({.token_ids = start, .why = "start"});
  const auto add = [&](std::vector<int32_t> ids, const char* why) {
    if (ids.size() > kMaxPrefixTokens || ids == start) return;
    for (const PrefixCandidate& c : result.candidates) {
      if (c.token_ids == ids) return;
    }
    result.candidates.push_back({.token_ids = std::move(ids), .why = why});
  };
  const std::vector<int32_t> opening = ConstantOpening(*input.tokenizer, input.chat_template);
  if (opening.size() > start.size() && std::equal(start.begin(), start.end(), opening.begin())) {
    add({opening.begin(),
         opening.begin() + static_cast<int64_t>(std::min(opening.size(), kMaxPrefixTokens))},
        "chat template");
  }
  OutlierTokens outliers(text);
  student.Run(
      {.token_ids = text.token_ids.data(), .sequences = text.count(), .tokens = text.tokens},
      {.prefix = input.start, .precise_activations = false, .observer = &outliers});
  for (const int32_t id : outliers.Worst(kOutlierTokens)) {
    std::vector<int32_t> ids = start;
    ids.push_back(id);
    add(std::move(ids), "outlier token");
  }
  for (size_t i = 0; i < result.candidates.size(); ++i) {
    progress(static_cast<double>(i) / static_cast<double>(result.candidates.size()));
    PrefixCandidate& candidate = result.candidates[i];
    const FloatPrefix prefix = float_forward.ComputePrefix(candidate.token_ids);
    ASSIGN_OR_RETURN(candidate.kl, KlBehind(prefix, input, text, held_out, student, pool));
    if (candidate.kl < (1 - kMinGain) * result.candidates[0].kl &&
        candidate.kl < result.candidates[result.best].kl) {
      result.best = i;
    }
  }
  return result;
}

}  // namespace fixpoint
