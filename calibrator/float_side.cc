#include "calibrator/float_side.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "calibrator/bundle_scales.h"
#include "calibrator/forward_weights.h"
#include "calibrator/integer_weights.h"

namespace fixpoint {
namespace {

bool Same(const RotationOptions& a, const RotationOptions& b) {
  return a.seed == b.seed && a.residual == b.residual && a.max_down_block == b.max_down_block &&
         a.v_hadamard == b.v_hadamard && a.qk_hadamard == b.qk_hadamard;
}

}  // namespace

struct FloatSide::Basis {
  RotationOptions options;
  FloatModel model;
  OnlineTransforms online;
};

// One source and what it refers to.
struct FloatSide::Pass {
  ForwardModel model;
  FloatPrefix prefix;
  Scales scales;
  std::optional<FloatForward> forward;
  std::optional<ForwardLogits> logits;
};

FloatSide::FloatSide(Checkpoint checkpoint, ThreadPool& pool)
    : checkpoint_(std::move(checkpoint)), pool_(pool), gemm_(CreateCpuGemm(pool)) {}

FloatSide::~FloatSide() = default;

absl::Status FloatSide::CheckSourceOf(const Bundle& bundle, const ProvenanceSource& provenance,
                                      const std::string& path) const {
  if (checkpoint_.source_sha256 != provenance.sha256) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the checkpoint given (SHA-256 ", checkpoint_.source_sha256, ") is not the source of ",
        path, ": that is ", provenance.name, " (SHA-256 ", provenance.sha256, ")"));
  }
  const FloatConfig& c = checkpoint_.model.config;
  const ModelConfig& b = bundle.model.config;
  const std::pair<const char*, std::pair<int32_t, int32_t>> shapes[] = {
      {"vocab_size", {b.vocab_size, c.vocab_size}},
      {"num_hidden_layers", {b.num_hidden_layers, c.num_hidden_layers}},
      {"hidden_size", {b.hidden_size, c.hidden_size}},
      {"layers of its scales",
       {static_cast<int32_t>(provenance.scales.layers.size()), c.num_hidden_layers}}};
  for (const auto& [name, values] : shapes) {
    if (values.first == values.second) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", name, " ", values.first, ", its source has ", values.second));
  }
  return absl::OkStatus();
}

FloatSide::Basis& FloatSide::InBasis(const RotationOptions& options) {
  for (const std::unique_ptr<Basis>& basis : bases_) {
    if (Same(basis->options, options)) return *basis;
  }
  Basis& basis = *bases_.emplace_back(std::make_unique<Basis>());
  basis.options = options;
  basis.model = checkpoint_.model;
  basis.online = FoldAndRotate(basis.model, options, *gemm_, pool_);
  return basis;
}

FloatSide::Pass& FloatSide::Add() { return *passes_.emplace_back(std::make_unique<Pass>()); }

LogitSource& FloatSide::Float(const std::vector<int32_t>& prefix) {
  Pass& pass = Add();
  pass.model = MakeForwardModel(checkpoint_.model, {}, WeightKind::kFloat32, *gemm_, pool_);
  pass.forward.emplace(pass.model, *gemm_, pool_);
  pass.prefix = pass.forward->ComputePrefix(prefix);
  return pass.logits.emplace(*pass.forward, ForwardOptions{.prefix = &pass.prefix});
}

LogitSource& FloatSide::Dynamic(const RotationOptions& options,
                                const std::vector<int32_t>& prefix) {
  const Basis& basis = InBasis(options);
  Pass& pass = Add();
  const ForwardModel exact =
      MakeForwardModel(basis.model, basis.online, WeightKind::kFloat32, *gemm_, pool_);
  pass.prefix = FloatForward(exact, *gemm_, pool_).ComputePrefix(prefix);
  pass.model = MakeForwardModel(basis.model, basis.online, WeightKind::kInt8, *gemm_, pool_);
  pass.forward.emplace(pass.model, *gemm_, pool_);
  return pass.logits.emplace(*pass.forward,
                             ForwardOptions{.prefix = &pass.prefix, .dynamic_int8 = true});
}

absl::StatusOr<LogitSource*> FloatSide::Simulation(const Bundle& bundle,
                                                   const ProvenanceSource& provenance) {
  const Basis& basis = InBasis(provenance.rotation);
  Pass& pass = Add();
  ASSIGN_OR_RETURN(const IntegerWeights weights,
                   WeightsOfBundle(bundle.model, basis.model, provenance.scales,
                                   provenance.method.vectors == "folded", pool_));
  ASSIGN_OR_RETURN(pass.scales, ScalesOfBundle(bundle.model, provenance.scales, weights));
  pass.prefix = PrefixOfBundle(bundle.model, pass.scales);
  pass.model = MakeIntegerForwardModel(weights, basis.model, basis.online, *gemm_, pool_);
  pass.forward.emplace(pass.model, *gemm_, pool_);
  return &pass.logits.emplace(*pass.forward,
                              ForwardOptions{.prefix = &pass.prefix, .scales = &pass.scales});
}

}  // namespace fixpoint
