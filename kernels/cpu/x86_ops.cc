// The tables of the x86 levels, compiled without their flags, so that dispatch can read names on
// any CPU.
#include "kernels/cpu/amx.h"
#include "kernels/cpu/levels.h"
#include "kernels/cpu/portable.h"
#include "kernels/cpu/vnni.h"

namespace fixpoint {
namespace {

constexpr Ops kAvx2Ops = {
    "avx2",
    avx2::PackedWeightBytes,
    avx2::PackWeights,
    avx2::Linear,
    avx2::Embed,
    avx2::RmsNorm,
    avx2::RotateHeads,
    avx2::NarrowRows,
    avx2::KvWrite,
    avx2::AttentionScratchBytes,
    avx2::Attention,
    nullptr,
    avx2::ResidualAdd,
    avx2::SwiGlu,
    avx2::Logits,
    nullptr,
};

constexpr AttentionParts kVnniAttentionParts = {
    vnni::AttentionPartsBytes,
    vnni::ScorePart,
    vnni::WeighPart,
    vnni::FinishParts,
};

constexpr Ops kVnniOps = {
    "vnni",
    vnni::PackedWeightBytes,
    vnni::PackWeights,
    vnni::Linear,
    vnni::Embed,
    vnni::RmsNorm,
    vnni::RotateHeads,
    vnni::NarrowRows,
    vnni::KvWrite,
    vnni::AttentionScratchBytes,
    vnni::Attention,
    &kVnniAttentionParts,
    vnni::ResidualAdd,
    vnni::SwiGlu,
    vnni::Logits,
    nullptr,
};

constexpr Ops MakeAmxOps() {
  Ops ops = kVnniOps;
  ops.name = "amx";
  ops.linear = amx::Linear;
  ops.attention_scratch_bytes = amx::AttentionScratchBytes;
  ops.attention = amx::Attention;
  ops.thread_init = amx::ThreadInit;
  return ops;
}
constexpr Ops kAmxOps = MakeAmxOps();

}  // namespace

const Ops& Avx2Ops() { return kAvx2Ops; }
const Ops& VnniOps() { return kVnniOps; }
const Ops& AmxOps() { return kAmxOps; }

}  // namespace fixpoint
