// Forward and backward pass of training: the gradient of a loss with respect to every scale, gain
// and prefix value, through the whole model, with frozen weights.
//
// The forward pass keeps the residual stream in front of each layer; the backward pass runs each
// layer again from there and then goes back through it. Rounding counts as the identity (straight
// through), clipping as what it is; products are those of the forward pass's type with float32
// sums.
#pragma once

#include <cstdint>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "calibrator/float_forward.h"
#include "calibrator/train/attention_backward.h"
#include "calibrator/train/parameters.h"

namespace fixpoint {

class BackwardPass {
 public:
  // All must outlive it. Memory: (layers + 1) * rows * hidden * 4 bytes and about rows * (5 *
  // intermediate + 12 * hidden) * 4.
  BackwardPass(FloatForward& forward, const ParameterLayout& layout, FloatGemm& gemm,
               ThreadPool& pool);

  // `options` with scales, and with `round` or not; start, kv, tape, record and resume unused.
  // `folded`: weights are divided by the gains of their linear site.
  void Forward(const ForwardBatch& batch, const ForwardOptions& options, bool folded);
  // Of rows [begin, end), in blocks that cover all rows once, in rising order.
  void Logits(int64_t begin, int64_t end, float* out) { forward_.Logits(begin, end, out); }
  // Takes dL/dlogits [end - begin][vocab] of the same rows; overwrites it.
  void AddLogitGradient(int64_t begin, int64_t end, float* d_logits);
  // After all rows: adds to gradient().
  void Backward();

  std::vector<double>& gradient() { return gradient_; }  // [layout.size()], the caller zeroes it

 private:
  int64_t rows() const { return int64_t{batch_.sequences} * batch_.tokens; }
  const LinearSite& Site(int32_t layer, LayerSite site) const;
  void HeadBackward();
  void LayerBackward(int32_t layer);
  void MlpBackward(int32_t layer);
  void DownBackward(int32_t layer);
  void AttentionBackwardPart(int32_t layer);
  void HeadsBackward(int32_t layer);
  void HeadRow(int32_t layer, int64_t row, float* sums, float* scale_sums);
  void NormBackward(int32_t layer, LayerSite site, const float* tape, const float* x,
                    const float* norm);
  template <typename F>
  void SiteBackward(int32_t layer, LayerSite site, const float* tape, float* dy, F&& then);
  template <typename F>
  void ForChunks(int64_t width, F&& fn);
  void ReduceChunks(int64_t width, int64_t first, int64_t count, int64_t offset);
  void MultiplyBack(const ForwardLinear& w, int64_t begin, int64_t rows, const float* dy,
                    int64_t dy_stride, float* dx, bool accumulate);

  FloatForward& forward_;
  const ForwardModel& model_;
  const FloatConfig& config_;
  const ParameterLayout& layout_;
  FloatGemm& gemm_;
  ThreadPool& pool_;
  AttentionBackward attention_;

  ForwardBatch batch_;
  ForwardOptions options_;
  bool folded_ = false;
  LayerTape tape_;
  std::vector<AlignedBuffer> checkpoints_;  // [layers + 1] of [rows][hidden]
  std::vector<float> rope_cos_, rope_negative_sin_;
  std::vector<float> q_units_, k_units_, ones_;
  AlignedBuffer d_residual_;        // [rows][hidden]
  AlignedBuffer d_wide_, d_wide2_;  // [rows][max(intermediate, heads...)]
  AlignedBuffer d_site_;            // [rows][hidden or heads * head_dim]
  AlignedBuffer operand_;           // [rows][widest output] of the product's type
  std::vector<float> chunk_sums_;   // [kChunks][width]
  std::vector<double> gradient_;
};

}  // namespace fixpoint
