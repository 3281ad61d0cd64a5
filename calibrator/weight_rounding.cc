#include "calibrator/weight_rounding.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "calibrator/float_forward.h"
#include "calibrator/second_moments.h"

namespace fixpoint {
namespace {

constexpr int32_t kBatchTokens = 2048;

// Moments of the sites of one layer, or of the head.
class LayerMoments : public SiteObserver {
 public:
  LayerMoments(FloatGemm& gemm, ThreadPool& pool) : collector_(gemm, pool) {}

  void Start() {
    for (SecondMoments& m : moments_) m = {};
  }
  const SecondMoments& of(LayerSite site) const { return moments_[static_cast<int32_t>(site)]; }

  void OnSite(const SiteRows& rows) override {
    SecondMoments& m = moments_[static_cast<int32_t>(rows.site)];
    m.depth = rows.depth;
    if (rows.type == GemmType::kBf16) {
      collector_.Add(static_cast<const uint16_t*>(rows.hi), static_cast<const uint16_t*>(rows.lo),
                     rows.rows, rows.depth, &m);
    } else {
      collector_.Add(static_cast<const float*>(rows.hi), rows.rows, rows.depth, &m);
    }
  }

 private:
  MomentsCollector collector_;
  SecondMoments moments_[kLayerLinearSites];
};

class Rounding {
 public:
  Rounding(const WeightRoundingInput& input, FloatGemm& gemm, ThreadPool& pool,
           const std::function<void(double)>& progress,
           const std::function<void(std::string)>& warn)
      : input_(input),
        config_(input.rotated->config),
        gemm_(gemm),
        pool_(pool),
        progress_(progress),
        warn_(warn),
        weights_(RoundWeights(*input.rotated, nullptr, pool)),
        model_(MakeIntegerForwardModel(weights_, *input.rotated, input.online, gemm, pool)),
        forward_(model_, gemm, pool),
        moments_(gemm, pool) {}

  absl::StatusOr<IntegerWeights> Run() {
    const Windows& windows = *input_.windows;
    const int32_t step = std::max(1, kBatchTokens / windows.tokens);
    for (int32_t first = 0; first < windows.count(); first += step) {
      const int32_t count = std::min(step, windows.count() - first);
      batches_.push_back(
          {.token_ids = windows.window(first), .sequences = count, .tokens = windows.tokens});
      StartBatch(batches_.back(), nullptr);
      Keep(&residuals_.emplace_back());
    }
    for (int32_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
      progress_(static_cast<double>(layer) / (config_.num_hidden_layers + 1));
      RETURN_IF_ERROR(RoundLayer(layer));
    }
    RETURN_IF_ERROR(RoundHead());
    return std::move(weights_);
  }

 private:
  int64_t ResidualBytes(const ForwardBatch& batch) const {
    return int64_t{batch.sequences} * batch.tokens * config_.hidden_size *
           static_cast<int64_t>(sizeof(float));
  }
  void StartBatch(const ForwardBatch& batch, SiteObserver* observer) {
    forward_.Start(batch, {.prefix = input_.prefix, .scales = input_.scales, .observer = observer});
    current_ = batch;
  }
  void Restore(const std::vector<float>& from) {
    std::memcpy(forward_.residual(), from.data(), ResidualBytes(current_));
  }
  void Keep(std::vector<float>* to) {
    to->resize(ResidualBytes(current_) / sizeof(float));
    std::memcpy(to->data(), forward_.residual(), ResidualBytes(current_));
  }

  // Moments with the layer's weights to nearest; then its weights; then what it hands on with them.
  absl::Status RoundLayer(int32_t layer) {
    moments_.Start();
    for (size_t i = 0; i < batches_.size(); ++i) {
      StartBatch(batches_[i], &moments_);
      Restore(residuals_[i]);
      forward_.RunLayer(layer);
    }
    for (const LayerLinear& linear : kLayerLinears) {
      RETURN_IF_ERROR(RoundLinear(input_.rotated->layers[layer].*linear.weights,
                                  moments_.of(linear.site),
                                  absl::StrCat("layers.", layer, ".", linear.name),
                                  &(weights_.layers[layer].*linear.integers)));
    }
    gemm_.ForgetWeights();
    ReplaceLayer(weights_.layers[layer], &model_.layers[layer], pool_);
    for (size_t i = 0; i < batches_.size(); ++i) {
      StartBatch(batches_[i], nullptr);
      Restore(residuals_[i]);
      forward_.RunLayer(layer);
      Keep(&residuals_[i]);
    }
    return absl::OkStatus();
  }

  absl::Status RoundHead() {
    moments_.Start();
    for (size_t i = 0; i < batches_.size(); ++i) {
      StartBatch(batches_[i], &moments_);
      Restore(residuals_[i]);
      forward_.FinishLayers();
    }
    return RoundLinear(input_.rotated->head_or_embedding(), moments_.of(LayerSite::kAttnIn), "head",
                       &weights_.head);
  }

  absl::Status RoundLinear(const Matrix& w, const SecondMoments& moments, const std::string& name,
                           IntegerLinear* linear) {
    absl::StatusOr<IntegerLinear> rounded =
        RoundWithMoments(w, linear->steps, moments, input_.gptq, pool_);
    if (rounded.ok()) {
      *linear = *std::move(rounded);
    } else if (rounded.status().code() == absl::StatusCode::kFailedPrecondition) {
      warn_(absl::StrCat(name, ": rounded to nearest: ", rounded.status().message()));
    } else {
      return Annotate(rounded.status(), name);
    }
    return absl::OkStatus();
  }

  const WeightRoundingInput& input_;
  const FloatConfig& config_;
  FloatGemm& gemm_;
  ThreadPool& pool_;
  const std::function<void(double)>& progress_;
  const std::function<void(std::string)>& warn_;
  IntegerWeights weights_;
  ForwardModel model_;
  FloatForward forward_;
  LayerMoments moments_;
  std::vector<ForwardBatch> batches_;
  std::vector<std::vector<float>> residuals_;  // of each batch, in front of the layer at work
  ForwardBatch current_;
};

}  // namespace

absl::StatusOr<IntegerWeights> RoundWithStaticInputs(const WeightRoundingInput& input,
                                                     FloatGemm& gemm, ThreadPool& pool,
                                                     const std::function<void(double)>& progress,
                                                     const std::function<void(std::string)>& warn) {
  return Rounding(input, gemm, pool, progress, warn).Run();
}

}  // namespace fixpoint
