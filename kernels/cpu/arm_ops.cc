// The tables of the aarch64 levels, compiled without their flags, so that dispatch can read names
// on any CPU.
#include "kernels/cpu/levels.h"
#include "kernels/cpu/neon.h"

namespace fixpoint {
namespace {

constexpr Ops kNeonOps = {
    "neon",
    neon::PackedWeightBytes,
    neon::PackWeights,
    neon::Linear,
    neon::Embed,
    neon::RmsNorm,
    neon::RotateHeads,
    neon::NarrowRows,
    neon::KvWrite,
    neon::AttentionScratchBytes,
    neon::Attention,
    nullptr,
    neon::ResidualAdd,
    neon::SwiGlu,
    neon::Logits,
    nullptr,
};

constexpr Ops MakeI8mmOps() {
  Ops ops = kNeonOps;
  ops.name = "i8mm";
  ops.packed_weight_bytes = i8mm::PackedWeightBytes;
  ops.pack_weights = i8mm::PackWeights;
  ops.linear = i8mm::Linear;
  ops.attention_scratch_bytes = i8mm::AttentionScratchBytes;
  ops.attention = i8mm::Attention;
  return ops;
}
constexpr Ops kI8mmOps = MakeI8mmOps();

}  // namespace

const Ops& NeonOps() { return kNeonOps; }
const Ops& I8mmOps() { return kI8mmOps; }

}  // namespace fixpoint
