// q, k and v from accumulators to int8: RoPE, Hadamard transform, requantization, and the write
// into the KV cache. One warp a head.
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/rows.cuh"

namespace fixpoint::FIXPOINT_CUDA_NAMESPACE {
namespace {

constexpr int32_t kWarps = 4;
constexpr uint32_t kThreads = 32 * kWarps;

// In place, in the warp's shared memory.
FIXPOINT_DEVICE void HadamardHead(int32_t* x, int32_t head_dim) {
  for (int32_t half = 1; half < head_dim; half *= 2) {
    SyncWarp();
    for (int32_t i = Lane(); i < head_dim / 2; i += 32) {
      const int32_t j = 2 * (i & ~(half - 1)) + (i & (half - 1));
      const int32_t a = x[j], b = x[j + half];
      x[j] = a + b;
      x[j + half] = a - b;
    }
  }
  SyncWarp();
}

// q or k of one head: leaves in x[i] what `after` requantizes. Channels are those of the tensor,
// columns those of the accumulators.
FIXPOINT_DEVICE void RotateHead(const CudaRotateArgs& args, int32_t t, int32_t channel,
                                int32_t column, const NarrowParams& before, int32_t* x) {
  const int32_t half = args.head_dim / 2;
  const size_t angle = static_cast<size_t>(args.rope_begin + args.positions[t]) * half;
  const auto value = [&](int32_t i) {
    return Sat16(Narrow(LoadAccumulator(args.acc, t, column + i), before.p,
                        before.multipliers[channel + i], before.k));
  };
  for (int32_t i = Lane(); i < half; i += 32) {
    const int32_t a = value(i), b = value(i + half);
    const int32_t cos = args.cos[angle + i], sin = args.sin[angle + i];
    x[i] = Sat16(RoundShift(a * cos - b * sin, 14));
    x[i + half] = Sat16(RoundShift(b * cos + a * sin, 14));
  }
  if (args.hadamard) {
    HadamardHead(x, args.head_dim);
  } else {
    SyncWarp();  // lane i wrote i + half, but another lane requantizes it
  }
}

FIXPOINT_KERNEL(kThreads, 1) RotateKernel(const CudaRotateArgs args) {
  FIXPOINT_SHARED(shared);
  const int32_t t = BlockX(), d = args.head_dim;
  const int32_t head = BlockY() * kWarps + Warp();
  if (head >= args.num_heads + 2 * args.kv_heads) return;  // the whole warp
  int32_t* x = reinterpret_cast<int32_t*>(shared) + Warp() * d;
  const int32_t column = head * d;
  if (head < args.num_heads) {
    RotateHead(args, t, column, column, args.q_before, x);
    int8_t* q = args.q + static_cast<size_t>(t) * args.q_stride + column;
    for (int32_t i = Lane(); i < d; i += 32) {
      q[i] = static_cast<int8_t>(
          Sat8(Narrow(x[i], args.q_after.p, args.q_after.multipliers[column + i], args.q_after.k)));
    }
    return;
  }
  const bool is_v = head >= args.num_heads + args.kv_heads;
  const int32_t kv_head = head - args.num_heads - (is_v ? args.kv_heads : 0);
  const int32_t channel = kv_head * d;
  const int32_t slot = args.positions[t] % kKvBlockTokens;
  int8_t* tile = args.cache.base + static_cast<size_t>(args.blocks[t]) * args.cache.block_stride +
                 static_cast<size_t>(kv_head) * 2 * kKvBlockTokens * d;
  if (is_v) {
    for (int32_t i = Lane(); i < d; i += 32) {
      tile[CudaVIndex(slot, i, d)] =
          static_cast<int8_t>(Sat8(Narrow(LoadAccumulator(args.acc, t, column + i), args.v.p,
                                          args.v.multipliers[channel + i], args.v.k)));
    }
    return;
  }
  RotateHead(args, t, channel, column, args.k_before, x);
  for (int32_t i = Lane(); i < d; i += 32) {
    tile[CudaKIndex(slot, i, d)] = static_cast<int8_t>(
        Sat8(Narrow(x[i], args.k_after.p, args.k_after.multipliers[channel + i], args.k_after.k)));
  }
}

}  // namespace

int Rotate(const CudaRotateArgs& args, CudaStream* stream) {
  const int32_t heads = args.num_heads + 2 * args.kv_heads;
  return Launch(
      RotateKernel,
      {static_cast<uint32_t>(args.tokens), static_cast<uint32_t>((heads + kWarps - 1) / kWarps)},
      kThreads, sizeof(int32_t) * kWarps * static_cast<size_t>(args.head_dim), stream, args);
}

}  // namespace fixpoint::FIXPOINT_CUDA_NAMESPACE
