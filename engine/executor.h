// Runs the model on a device. The scheduler decides what to run; an executor only computes.
// Implementations: CpuExecutor (engine/cpu_executor.h), CudaExecutor (engine/cuda_executor.h).
#pragma once

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/sampling_params.h"

namespace fixpoint {

// What becomes of a wanted row: its logits are copied, or the executor chooses its token by the
// rules of engine/sampler.h and nothing else.
struct RowChoice {
  const SamplingParams* sampling = nullptr;  // null: the logits are wanted
  uint64_t position = 0;                     // of the token in the whole context
};

// Consecutive tokens of one sequence. Cache position 0 is the first token behind the model's fixed
// prefix.
struct SequenceChunk {
  absl::Span<const int32_t> token_ids;  // at least one
  int32_t position =
      0;  // cache position of token_ids[0]: all earlier positions are already in the cache
  absl::Span<const int32_t> block_table;  // KV block of each kKvBlockTokens positions, covering
                                          // position + token_ids.size()
  // Indices into token_ids, rising, whose logits are wanted. Empty: none (a prefill chunk in the
  // middle of a prompt).
  absl::Span<const int32_t> logit_indices;
  // Of each of logit_indices, or empty: all logits are wanted. For ForwardAndChoose only.
  absl::Span<const RowChoice> choices = {};
};

// Sizes that the scheduler and the KV pool need.
struct ExecutorLimits {
  int32_t vocab_size = 0;
  int32_t num_blocks = 0;    // KV blocks owned by the executor
  int32_t block_tokens = 0;  // tokens in a block
  int64_t block_bytes = 0;   // bytes of one block over all layers
  int32_t max_sequence_tokens =
      0;  // cache positions a sequence may use: max_position_embeddings - prefix
  int32_t max_step_tokens = 0;  // tokens in one Forward over all chunks
  int32_t max_step_logits = 0;  // logit rows in one Forward
};

class Executor {
 public:
  virtual ~Executor() = default;
  virtual const ExecutorLimits& limits() const = 0;

  // Runs all chunks in one step: appends their K and V to the cache and writes the wanted logit
  // rows, in order of chunk and index, to logits [rows][vocab_size] (int32,
  // ModelConfig::logit_fraction_bits). Chunks are of different sequences. The result of a row
  // depends only on its own sequence's tokens: never on other chunks, the split into chunks or
  // threads. Called by one thread only (the engine thread). An error means that the device is lost.
  virtual absl::Status Forward(absl::Span<const SequenceChunk> chunks, int32_t* logits) = 0;

  // Whether ForwardAndChoose works. Where it does not, the caller chooses from logits.
  virtual bool chooses_tokens() const { return false; }

  // Forward for chunks with choices. Row r of the step, counted over all chunks, is written to
  // logits + r * vocab_size where its logits are wanted; where its token is, the token is written
  // to tokens[r] and the row of logits is left alone. Both have room for all rows; tokens of
  // other rows mean nothing.
  virtual absl::Status ForwardAndChoose(absl::Span<const SequenceChunk>, int32_t* /*logits*/,
                                        int32_t* /*tokens*/) {
    return absl::UnimplementedError("this executor does not choose tokens");
  }

  // The same in two halves, so that the caller can work beside a device: Submit starts the step,
  // Wait ends it, as ForwardAndChoose does, or Forward where chooses_tokens() is false. In between,
  // logits and tokens mean nothing, and no other function may be called but those that are const.
  // No Wait behind a Submit that failed. An executor without a device of its own runs the whole
  // step in Wait: where copies_chunks() is false, chunks and all that they point to stay as they
  // are until then.
  virtual absl::Status Submit(absl::Span<const SequenceChunk> chunks, int32_t* logits,
                              int32_t* tokens) {
    submitted_ = {chunks, logits, tokens};
    return absl::OkStatus();
  }
  virtual bool copies_chunks() const { return false; }
  virtual absl::Status Wait() {
    const auto [chunks, logits, tokens] = submitted_;
    return chooses_tokens() ? ForwardAndChoose(chunks, logits, tokens) : Forward(chunks, logits);
  }

  // Runs task(index, worker) for index in [0, tasks), worker in [0, workers()), and returns when
  // all are done: the executor's threads, lent to the engine thread between two steps. A worker
  // number is in use by one thread at a time.
  virtual void Parallel(int32_t tasks,
                        absl::FunctionRef<void(int32_t index, int32_t worker)> task) {
    for (int32_t i = 0; i < tasks; ++i) task(i, 0);
  }
  virtual int32_t workers() const { return 1; }

 private:
  struct {
    absl::Span<const SequenceChunk> chunks;
    int32_t* logits = nullptr;
    int32_t* tokens = nullptr;
  } submitted_;
};

}  // namespace fixpoint
