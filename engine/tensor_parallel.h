// A model cut into parts for several devices (tensor parallelism). Every part computes int32
// accumulators of its own heads, channels and vocabulary; where the parts share a sum (o_proj,
// down_proj), they add accumulators up before anything is rounded, so that any degree gives the
// same bits.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "bundle/model.h"

namespace fixpoint {

inline constexpr int32_t kMaxTensorParallel = 8;  // 1, 2, 4 and 8 parts

// INVALID_ARGUMENT names the dimension of the model that cannot be cut into `degree` parts, or the
// degree.
absl::Status CheckTensorParallel(const ModelConfig& config, int32_t degree);

// First entry of the vocabulary that part `rank` has the logits of; rank == degree: behind the
// last.
constexpr int32_t FirstOfVocabulary(int32_t vocab_size, int32_t rank, int32_t degree) {
  return static_cast<int32_t>(int64_t{vocab_size} * rank / degree);
}

// Part `rank` of `degree`, for a model and degree that CheckTensorParallel accepts:
//   qkv, their multipliers, scores, prefix  whole kv heads with the query heads of their groups
//   gate_up, down_in                        whole Hadamard blocks of channels
//   o_proj, down_proj                       columns of the depth: outputs are partial sums; what
//                                           follows the sum (multipliers, bias) is all there
//   head                                    a range of the vocabulary
//   embedding, norms                        all there
// The result's config says the part's sizes: vocab_size is the head's, not the embedding's.
IntegerModel ShardModel(const IntegerModel& model, int32_t rank, int32_t degree);

}  // namespace fixpoint
