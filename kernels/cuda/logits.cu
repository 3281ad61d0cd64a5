// Accumulators of the head to logits.
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/rows.cuh"

namespace fixpoint::FIXPOINT_CUDA_NAMESPACE {
namespace {

constexpr uint32_t kThreads = 256;

FIXPOINT_KERNEL(kThreads, 1) LogitsKernel(const CudaLogitsArgs args) {
  const int32_t row = BlockY();
  const int32_t c = BlockX() * static_cast<int32_t>(kThreads) + ThreadX();
  if (c >= args.vocab) return;
  const int64_t logit =
      Wide(LoadAccumulator(args.acc, row, c), args.requantize.multipliers[c], args.requantize.n);
  args.logits[static_cast<size_t>(row) * args.vocab + c] =
      static_cast<int32_t>(Clamp<int64_t>(logit, kLogitLimit));
}

}  // namespace

int Logits(const CudaLogitsArgs& args, CudaStream* stream) {
  return Launch(LogitsKernel,
                {(static_cast<uint32_t>(args.vocab) + kThreads - 1) / kThreads,
                 static_cast<uint32_t>(args.rows)},
                kThreads, 0, stream, args);
}

}  // namespace fixpoint::FIXPOINT_CUDA_NAMESPACE
