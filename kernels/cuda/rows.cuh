// What the kernels over rows share: accumulators put together, sums over a block, the RMS norm.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/reference/arithmetic.h"

namespace fixpoint::FIXPOINT_CUDA_NAMESPACE {

FIXPOINT_DEVICE int32_t SumSplits(const Accumulators& acc, const int32_t* at) {
  int32_t sum = at[0];
  for (int32_t s = 1; s < acc.splits; ++s) sum += at[static_cast<size_t>(s) * acc.split_stride];
  return sum;
}

FIXPOINT_DEVICE int32_t LoadAccumulator(const Accumulators& acc, int32_t t, int32_t c) {
  const int32_t* at = acc.data + static_cast<size_t>(t) * acc.stride + c;
  int32_t sum = acc.bias == nullptr ? 0 : acc.bias[c];
  sum += SumSplits(acc, at);
  if (acc.plane_stride != 0) sum += RoundShift(SumSplits(acc, at + acc.plane_stride), 8);
  return sum;
}

FIXPOINT_DEVICE int8_t* RowOf(int8_t* plane, size_t stride, int32_t t) {
  return plane == nullptr ? nullptr : plane + static_cast<size_t>(t) * stride;
}

struct MaxOf {
  FIXPOINT_DEVICE int64_t operator()(int64_t a, int64_t b) const { return a > b ? a : b; }
};
struct SumOf {
  FIXPOINT_DEVICE int64_t operator()(int64_t a, int64_t b) const { return a + b; }
};

// The value of all threads of a block of kWarps warps together, in each of them. `shared` has room
// for kWarps values and is free again after the block's next barrier.
template <int32_t kWarps, typename Combine>
FIXPOINT_DEVICE int64_t CombineBlock(int64_t value, int64_t* shared, Combine combine) {
  FIXPOINT_UNROLL
  for (int32_t mask = 16; mask > 0; mask /= 2) value = combine(value, ShuffleXor64(value, mask));
  if (Lane() == 0) shared[Warp()] = value;
  SyncThreads();
  value = shared[0];
  FIXPOINT_UNROLL
  for (int32_t i = 1; i < kWarps; ++i) value = combine(value, shared[i]);
  return value;
}

// rms_norm of a row `h` of which this thread has written, and now reads, elements ThreadX(),
// ThreadX() + 32 * kWarps, ... `largest` is the greatest magnitude of those. `shared` has room for
// 2
// * kWarps values.
template <int32_t kWarps>
FIXPOINT_DEVICE void NormRow(const int32_t* h, int32_t hidden, int32_t largest,
                             const CudaNorm& norm, int32_t out_row, int64_t* shared) {
  constexpr int32_t kThreads = 32 * kWarps;
  const int32_t shift =
      NormInputShift(static_cast<int32_t>(CombineBlock<kWarps>(largest, shared, MaxOf{})));
  int64_t sum = 0;  // below 2^60: hidden <= 16384 squares of 23 bits
  for (int32_t j = ThreadX(); j < hidden; j += kThreads) {
    const int64_t x = Clamp(RoundShift(h[j], shift), kNormInputLimit);
    sum += x * x;
  }
  const auto squares = static_cast<uint64_t>(CombineBlock<kWarps>(sum, shared + kWarps, SumOf{}));
  const InverseRoot root = InverseSquareRoot((norm.epsilon >> (2 * shift)) + squares, LongDivide{});
  int8_t* hi = RowOf(norm.out.hi, norm.out.stride, out_row);
  int8_t* lo = RowOf(norm.out.lo, norm.out.stride, out_row);
  for (int32_t j = ThreadX(); j < hidden; j += kThreads) {
    const int64_t x = Clamp(RoundShift(h[j], shift), kNormInputLimit);
    const auto unit = static_cast<int32_t>(
        Clamp<int64_t>(RoundShift64(x * root.inverse, root.shift - norm.fraction_bits), 32767));
    StoreActivation(RoundShift(unit * norm.multipliers[j], norm.k), hi + j,
                    lo == nullptr ? nullptr : lo + j);
  }
}

}  // namespace fixpoint::FIXPOINT_CUDA_NAMESPACE
