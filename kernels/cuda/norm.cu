// Everything that ends in the RMS norm: one block a row. The block writes the residual stream and
// each thread reads back only what it has written itself, from the cache.
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/rows.cuh"

namespace fixpoint::FIXPOINT_CUDA_NAMESPACE {
namespace {

constexpr int32_t kWarps = 8;
constexpr uint32_t kThreads = 32 * kWarps;
constexpr size_t kSharedBytes = 2 * kWarps * sizeof(int64_t);

FIXPOINT_DEVICE int32_t Larger(int32_t largest, int32_t value) {
  const int32_t magnitude = value < 0 ? -value : value;
  return magnitude > largest ? magnitude : largest;
}

FIXPOINT_KERNEL(kThreads, 1) EmbedKernel(const CudaEmbedArgs args) {
  FIXPOINT_SHARED(shared);
  const int32_t t = BlockX(), hidden = args.embed.hidden;
  const int32_t id = args.embed.token_ids[t];
  const int8_t* row = args.embed.table + static_cast<size_t>(id) * hidden;
  const int32_t multiplier = args.embed.requantize.multipliers[id];
  int32_t* h = args.embed.h + static_cast<size_t>(t) * hidden;
  int32_t largest = 0;
  for (int32_t j = ThreadX(); j < hidden; j += kThreads) {
    h[j] = static_cast<int32_t>(
        Clamp<int64_t>(Wide(row[j], multiplier, args.embed.requantize.n), kResidualLimit));
    largest = Larger(largest, h[j]);
  }
  NormRow<kWarps>(h, hidden, largest, args.norm, t, reinterpret_cast<int64_t*>(shared));
}

FIXPOINT_KERNEL(kThreads, 1) ResidualKernel(const CudaResidualArgs args) {
  FIXPOINT_SHARED(shared);
  const int32_t t = BlockX();
  int32_t* h = args.h + static_cast<size_t>(t) * args.hidden;
  int32_t largest = 0;
  for (int32_t j = ThreadX(); j < args.hidden; j += kThreads) {
    const int64_t sum = h[j] + Wide(LoadAccumulator(args.acc, t, j), args.requantize.multipliers[j],
                                    args.requantize.n);
    h[j] = static_cast<int32_t>(Clamp<int64_t>(sum, kResidualLimit));
    largest = Larger(largest, h[j]);
  }
  if (args.norm.multipliers == nullptr) return;
  NormRow<kWarps>(h, args.hidden, largest, args.norm, t, reinterpret_cast<int64_t*>(shared));
}

FIXPOINT_KERNEL(kThreads, 1) GatherNormKernel(const CudaGatherNormArgs args) {
  FIXPOINT_SHARED(shared);
  const int32_t* h = args.h + static_cast<size_t>(args.rows[BlockX()]) * args.hidden;
  int32_t largest = 0;
  for (int32_t j = ThreadX(); j < args.hidden; j += kThreads) largest = Larger(largest, h[j]);
  NormRow<kWarps>(h, args.hidden, largest, args.norm, BlockX(), reinterpret_cast<int64_t*>(shared));
}

}  // namespace

int Embed(const CudaEmbedArgs& args, CudaStream* stream) {
  return Launch(EmbedKernel, {static_cast<uint32_t>(args.embed.tokens)}, kThreads, kSharedBytes,
                stream, args);
}

int Residual(const CudaResidualArgs& args, CudaStream* stream) {
  return Launch(ResidualKernel, {static_cast<uint32_t>(args.tokens)}, kThreads, kSharedBytes,
                stream, args);
}

int GatherNorm(const CudaGatherNormArgs& args, CudaStream* stream) {
  return Launch(GatherNormKernel, {static_cast<uint32_t>(args.num_rows)}, kThreads, kSharedBytes,
                stream, args);
}

}  // namespace fixpoint::FIXPOINT_CUDA_NAMESPACE
