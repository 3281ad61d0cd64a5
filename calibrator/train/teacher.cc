#include "calibrator/train/teacher.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "calibrator/vector_loops.h"

namespace fixpoint {
namespace {

constexpr int32_t kBatchTokens = 2048;

// Copies the head's inputs as they pass.
class HeadInputs : public SiteObserver {
 public:
  HeadInputs(int32_t head_layer, std::byte* out) : head_layer_(head_layer), out_(out) {}
  void OnSite(const SiteRows& rows) override {
    if (rows.layer != head_layer_) return;
    const int64_t bytes = rows.rows * rows.depth * BytesOf(rows.type);
    std::memcpy(out_, rows.hi, bytes);
    out_ += bytes;
  }

 private:
  const int32_t head_layer_;
  std::byte* out_;
};

}  // namespace

int64_t Teacher::BytesPerToken(const FloatForward& forward) {
  const ForwardLinear& head = forward.model().head;
  return head.depth * BytesOf(head.type);
}

std::unique_ptr<Teacher> Teacher::Create(FloatForward& forward, const FloatPrefix& prefix,
                                         const Windows& windows, FloatGemm& gemm, ThreadPool& pool,
                                         const std::function<void(double)>& progress) {
  std::unique_ptr<Teacher> teacher(new Teacher(forward.model(), gemm, pool));
  teacher->window_tokens_ = windows.tokens;
  teacher->states_ =
      AlignedBuffer(static_cast<size_t>(windows.token_ids.size()) * BytesPerToken(forward));
  HeadInputs observer(forward.model().config().num_hidden_layers, teacher->states_.data());
  const int32_t step = std::max(1, kBatchTokens / windows.tokens);
  for (int32_t first = 0; first < windows.count(); first += step) {
    progress(static_cast<double>(first) / windows.count());
    forward.Run({.token_ids = windows.window(first),
                 .sequences = std::min(step, windows.count() - first),
                 .tokens = windows.tokens},
                {.prefix = &prefix, .precise_activations = false, .observer = &observer});
  }
  return teacher;
}

void Teacher::Logits(int32_t window, int32_t begin, int32_t end, float* out) const {
  const ForwardLinear& head = model_.head;
  gemm_.Multiply({.type = head.type,
                  .rows = end - begin,
                  .outputs = head.outputs,
                  .depth = head.depth,
                  .x = states_.data() +
                       (int64_t{window} * window_tokens_ + begin) * head.depth * BytesOf(head.type),
                  .x_stride = head.depth,
                  .w = head.values(),
                  .w_stride = head.depth,
                  .y = out,
                  .y_stride = head.outputs,
                  .keep_w = true});
}

}  // namespace fixpoint
