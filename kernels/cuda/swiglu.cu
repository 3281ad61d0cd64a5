// SwiGLU, Hadamard transform and requantization. One warp has kTile channels of a token, channel i
// * 32 + lane in its i-th register: butterflies of less than 32 channels go through shuffles, wider
// ones stay inside the thread, and the warps never wait for each other.
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/rows.cuh"

namespace fixpoint::FIXPOINT_CUDA_NAMESPACE {
namespace {

constexpr int32_t kWarps = 4;
constexpr uint32_t kThreads = 32 * kWarps;
constexpr int32_t kPerThread = 16;
constexpr int32_t kTile = 32 * kPerThread;  // the widest Hadamard block

FIXPOINT_CONSTANT int16_t kSigmoid[129] = {
#include "kernels/reference/sigmoid_table.inc"
};

FIXPOINT_DEVICE int32_t GatedValue(const CudaSwiGluArgs& args, int32_t t, int32_t c) {
  const NarrowParams &gate = args.gate_requantize, &up = args.up_requantize;
  const int32_t g =
      Sat16(Narrow(LoadAccumulator(args.acc, t, c), gate.p, gate.multipliers[c], gate.k));
  const int32_t u =
      Sat16(Narrow(LoadAccumulator(args.acc, t, args.channels + c), up.p, up.multipliers[c], up.k));
  const int32_t y = Silu(g, args.sigmoid_multiplier, args.sigmoid_shift, kSigmoid);
  return Clamp(RoundShift(y * u, args.product_shift), kProductLimit);
}

FIXPOINT_DEVICE void HadamardTile(int32_t (&x)[kPerThread], int32_t block) {
  for (int32_t half = 1; half < 32 && half < block; half *= 2) {
    const bool second = (Lane() & half) != 0;
    FIXPOINT_UNROLL
    for (int32_t i = 0; i < kPerThread; ++i) {
      const int32_t other = ShuffleXor(x[i], half);
      x[i] = second ? other - x[i] : x[i] + other;
    }
  }
  FIXPOINT_UNROLL
  for (int32_t half = 1; half < kPerThread; half *= 2) {
    if (32 * half >= block) break;
    FIXPOINT_UNROLL
    for (int32_t i = 0; i < kPerThread; ++i) {
      if ((i & half) != 0) continue;
      const int32_t a = x[i], b = x[i + half];
      x[i] = a + b;
      x[i + half] = a - b;
    }
  }
}

FIXPOINT_KERNEL(kThreads, 1) SwiGluKernel(const CudaSwiGluArgs args) {
  const int32_t t = BlockY();
  const int32_t first = (BlockX() * kWarps + Warp()) * kTile;
  if (first >= args.channels) return;  // the whole warp
  int32_t x[kPerThread];
  FIXPOINT_UNROLL
  for (int32_t i = 0; i < kPerThread; ++i) {
    const int32_t c = first + 32 * i + Lane();
    x[i] = c < args.channels ? GatedValue(args, t, c) : 0;
  }
  HadamardTile(x, args.hadamard_block);
  int8_t* hi = RowOf(args.out.hi, args.out.stride, t);
  int8_t* lo = RowOf(args.out.lo, args.out.stride, t);
  const NarrowParams& out = args.out_requantize;
  FIXPOINT_UNROLL
  for (int32_t i = 0; i < kPerThread; ++i) {
    const int32_t c = first + 32 * i + Lane();
    if (c >= args.channels) continue;
    StoreActivation(Narrow(x[i], out.p, out.multipliers[c], out.k), hi + c,
                    lo == nullptr ? nullptr : lo + c);
  }
}

}  // namespace

int SwiGlu(const CudaSwiGluArgs& args, CudaStream* stream) {
  constexpr int32_t kChannels = kWarps * kTile;
  return Launch(SwiGluKernel,
                {static_cast<uint32_t>((args.channels + kChannels - 1) / kChannels),
                 static_cast<uint32_t>(args.tokens)},
                kThreads, 0, stream, args);
}

}  // namespace fixpoint::FIXPOINT_CUDA_NAMESPACE
