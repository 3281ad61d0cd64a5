// The table alone, so that dispatch can read names on any CPU.
#include "kernels/cpu/levels.h"
#include "kernels/cpu/portable.h"

namespace fixpoint {
namespace {

constexpr Ops kPortableOps = {
    "portable",
    portable::PackedWeightBytes,
    portable::PackWeights,
    portable::Linear,
    portable::Embed,
    portable::RmsNorm,
    portable::RotateHeads,
    portable::NarrowRows,
    portable::KvWrite,
    portable::AttentionScratchBytes,
    portable::Attention,
    nullptr,
    portable::ResidualAdd,
    portable::SwiGlu,
    portable::Logits,
    nullptr,
};

}  // namespace

const Ops& PortableOps() { return kPortableOps; }

}  // namespace fixpoint
