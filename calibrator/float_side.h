// The float side of an evaluation: a checkpoint, and forward passes over it in float, with dynamic
// int8 activations, or as the simulation of a bundle.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "bundle/bundle.h"
#include "calibrator/evaluate.h"
#include "calibrator/float_forward.h"
#include "calibrator/gemm.h"
#include "calibrator/import/checkpoint.h"
#include "calibrator/provenance.h"
#include "calibrator/rotate.h"

namespace fixpoint {

// Norm gains folded into the weights and nothing turned: the basis in which most servers quantize.
inline constexpr RotationOptions kPlainBasis = {
    .residual = false, .max_down_block = 1, .v_hadamard = false, .qk_hadamard = false};

// Sources of logits live as long as this object and can be measured together: each has a forward
// pass of its own. Memory: the float32 weights, once more for each basis in use, half of that for
// each source with int8 weights (bf16), and each source's activations (float_forward.h). One thread
// at a time.
class FloatSide {
 public:
  FloatSide(Checkpoint checkpoint, ThreadPool& pool);
  ~FloatSide();
  FloatSide(const FloatSide&) = delete;
  FloatSide& operator=(const FloatSide&) = delete;

  const Checkpoint& checkpoint() const { return checkpoint_; }

  // INVALID_ARGUMENT, naming both, when the bundle at `path` was made of another checkpoint or has
  // another shape.
  absl::Status CheckSourceOf(const Bundle& bundle, const ProvenanceSource& provenance,
                             const std::string& path) const;

  // The float model behind the tokens given. Ids are in the vocabulary.
  LogitSource& Float(const std::vector<int32_t>& prefix);

  // int8 weights per row and dynamic int8 activations (ForwardOptions.dynamic_int8) in the basis
  // given, behind the tokens' K and V in float.
  LogitSource& Dynamic(const RotationOptions& basis, const std::vector<int32_t>& prefix);

  // The bundle in float: its very weights, scales, gains and prefix, every site rounded.
  absl::StatusOr<LogitSource*> Simulation(const Bundle& bundle, const ProvenanceSource& provenance);

 private:
  struct Basis;
  struct Pass;

  Basis& InBasis(const RotationOptions& options);
  Pass& Add();

  Checkpoint checkpoint_;
  ThreadPool& pool_;
  const std::unique_ptr<FloatGemm> gemm_;
  std::vector<std::unique_ptr<Basis>> bases_;
  std::vector<std::unique_ptr<Pass>> passes_;
};

}  // namespace fixpoint
