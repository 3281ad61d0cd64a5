// Gathers the second moments of a linear site's integer inputs for gptq.h.
#pragma once

#include <cstdint>

#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "calibrator/gemm.h"
#include "calibrator/gptq.h"

namespace fixpoint {

// Adds batches of rows to the moments of any number of sites; it holds only scratch memory, 5 KiB
// (bf16) or 9 KiB (float32) a channel of the widest site, so one serves them all. Uses the whole
// team: one call at a time.
//
// Exactness: products are summed in float32 over at most 1024 rows, so integers up to 128 give
// exact sums of each batch (1024 * 128^2 = 2^24), which are then added to the float32 totals.
// Neither the number of threads nor the split of the work changes a bit.
class MomentsCollector {
 public:
  // `gemm` and `pool` must outlive it.
  MomentsCollector(FloatGemm& gemm, ThreadPool& pool) : gemm_(gemm), pool_(pool) {}

  // moments->sums += x^T x for x [rows][stride], of which the first moments->depth columns count;
  // an empty `sums` starts at 0. Elements are bf16, only with gemm.fast_bf16().
  //   lo: null, or the second plane of an int16 site (vector_loops.h, quantize_wide_bf16): the
  //   input is hi + lo, rounded to bf16, so within 2^-9 of its size. Moments want no more, and the
  //   small channels beside an outlier, which have hi = 0, count too.
  void Add(const uint16_t* hi, const uint16_t* lo, int64_t rows, int64_t stride,
           SecondMoments* moments);
  // The same for float32 elements, at the speed of float32 products.
  void Add(const float* x, int64_t rows, int64_t stride, SecondMoments* moments);

 private:
  template <typename T, typename Read>
  void AddRows(const Read& read, int64_t rows, SecondMoments* moments);
  void AddBatch(GemmType type, int64_t rows, SecondMoments* moments);

  FloatGemm& gemm_;
  ThreadPool& pool_;
  AlignedBuffer rows_;        // [rows][depth], the batch
  AlignedBuffer transposed_;  // [depth][rows], the batch
  AlignedBuffer product_;     // [depth][panel]
};

}  // namespace fixpoint
