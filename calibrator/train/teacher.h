// What the student is trained towards: the float model's logits on the training windows.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "calibrator/evaluate.h"
#include "calibrator/float_forward.h"

namespace fixpoint {

// The inputs of the head for every token of the windows, kept in the type of the products (bf16:
// rounded), so that each epoch costs one product with the head and no forward pass.
class Teacher {
 public:
  // `forward` runs here only; its model and `gemm` must outlive the result. rows * hidden * 2
  // (bf16) or 4 bytes. `progress` gets the share done.
  static std::unique_ptr<Teacher> Create(FloatForward& forward, const FloatPrefix& prefix,
                                         const Windows& windows, FloatGemm& gemm, ThreadPool& pool,
                                         const std::function<void(double)>& progress);
  static int64_t BytesPerToken(const FloatForward& forward);

  // Logits of tokens [begin, end) of a window. out [end - begin][vocab_size].
  void Logits(int32_t window, int32_t begin, int32_t end, float* out) const;

 private:
  Teacher(const ForwardModel& model, FloatGemm& gemm, ThreadPool& pool)
      : model_(model), gemm_(gemm), pool_(pool) {}

  const ForwardModel& model_;
  FloatGemm& gemm_;
  ThreadPool& pool_;
  int32_t window_tokens_ = 0;
  AlignedBuffer states_;  // [windows][tokens][hidden]
};

}  // namespace fixpoint
