#include "calibrator/held_out.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/status_macros.h"

namespace fixpoint {
namespace {

constexpr int64_t kMaxCheckpointBytes = 512 << 20;

bool Equal(const LinearSite& a, const LinearSite& b) {
  return a.scale == b.scale && a.wide == b.wide && a.gain == b.gain;
}

bool Equal(const LayerScales& a, const LayerScales& b) {
  for (int32_t i = 0; i < kLayerLinearSites; ++i) {
    const LayerSite site = static_cast<LayerSite>(i);
    if (!Equal(a.linear(site), b.linear(site))) return false;
  }
  return a.q == b.q && a.k == b.k && a.v == b.v && a.q_gain == b.q_gain && a.k_gain == b.k_gain &&
         a.v_gain == b.v_gain;
}

}  // namespace

// The forward pass, with the checkpoints of the batch at hand.
class HeldOutMeasurer::Student : public LogitSource {
 public:
  Student(HeldOutMeasurer& owner, const Scales& scales, bool record, int32_t first_layer)
      : owner_(owner), scales_(scales), record_(record), first_layer_(first_layer) {}
  int32_t vocab_size() const override { return owner_.student_.vocab_size(); }

  absl::Status Start(const Windows& windows, int32_t first, int32_t count) override {
    ForwardOptions options{.prefix = &owner_.prefix_, .scales = &scales_};
    if (record_) {
      const int64_t all_bytes = static_cast<int64_t>(windows.token_ids.size()) *
                                owner_.config_.hidden_size * owner_.config_.num_hidden_layers *
                                static_cast<int64_t>(sizeof(float));
      LayerCheckpoints& to = owner_.checkpoints_.emplace_back();
      to.stride = static_cast<int32_t>(1 + all_bytes / kMaxCheckpointBytes);
      options.record = &to;
    } else if (first_layer_ > 0) {
      CHECK_LT(batch_, owner_.checkpoints_.size());
      options.resume = &owner_.checkpoints_[batch_];
      options.first_layer = first_layer_;
    }
    ++batch_;
    owner_.student_.Run(
        {.token_ids = windows.window(first), .sequences = count, .tokens = windows.tokens},
        options);
    return absl::OkStatus();
  }

  absl::Status Logits(int64_t begin, int64_t end, float* out) override {
    owner_.student_.Logits(begin, end, out);
    return absl::OkStatus();
  }

 private:
  HeldOutMeasurer& owner_;
  const Scales& scales_;
  const bool record_;
  const int32_t first_layer_;
  size_t batch_ = 0;
};

absl::Status HeldOutMeasurer::SetBase(const Scales& scales) {
  checkpoints_.clear();
  ASSIGN_OR_RETURN(base_kl_, Run(scales, /*record=*/true, 0));
  base_ = scales;
  return absl::OkStatus();
}

absl::StatusOr<double> HeldOutMeasurer::Measure(const Scales& scales) {
  if (checkpoints_.empty()) return Run(scales, /*record=*/false, 0);
  const int32_t first = FirstDifference(scales);
  if (first > config_.num_hidden_layers) return base_kl_;
  return Run(scales, /*record=*/false, first);
}

absl::StatusOr<double> HeldOutMeasurer::Run(const Scales& scales, bool record,
                                            int32_t first_layer) {
  Student student(*this, scales, record, first_layer);
  ASSIGN_OR_RETURN(const std::vector<Comparison> result,
                   Compare(teacher_, {&student}, windows_, pool_));
  return result[0].kl_mean;
}

// num_hidden_layers: head_in; one more: nothing differs.
int32_t HeldOutMeasurer::FirstDifference(const Scales& scales) const {
  const int32_t layers = config_.num_hidden_layers;
  for (int32_t i = 0; i < layers; ++i) {
    if (!Equal(scales.layers[i], base_.layers[i])) return i;
  }
  return Equal(scales.head_in, base_.head_in) ? layers + 1 : layers;
}

}  // namespace fixpoint
