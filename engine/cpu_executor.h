// Executor on the CPU: packed weights, KV memory, scratch and a team of threads around the forward
// pass of engine/models/.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "bundle/model.h"
#include "engine/executor.h"
#include "engine/models/llama.h"
#include "kernels/ops.h"

namespace fixpoint {

inline constexpr int32_t kMaxThreads = 1024;
inline constexpr int32_t kMaxStepTokens = 65536;

struct CpuExecutorOptions {
  int32_t threads =
      0;  // [0, kMaxThreads]; 0: every CPU that the process may use. The caller of Forward is one
  int64_t kv_cache_bytes = 0;     // 0: DefaultKvCacheBytes; else at least one block
  int32_t max_step_tokens = 512;  // [1, kMaxStepTokens]
  int32_t max_step_logits = 64;   // [1, max_step_tokens]; costs 4 bytes * vocabulary each
  const Ops* ops = nullptr;       // null: SelectOps() of kernels/cpu/dispatch.h
  bool profile = false;           // clock the parts of each step
  bool pin_threads = false;       // see ThreadPoolOptions
};

// Bytes of one KV block over all layers.
int64_t KvBlockBytes(const ModelConfig& config);
// Bytes of the blocks of one sequence of full length.
int64_t KvSequenceBytes(const IntegerModel& model);
// Room for eight sequences of full length within 2 GiB, and for one in any case. Pages cost memory
// once they are used.
int64_t DefaultKvCacheBytes(const IntegerModel& model);

class CpuExecutor final : public Executor {
 public:
  // `model` has passed ValidateModel (ReadBundle does it). Packs the weights with all threads, one
  // matrix after the other, and frees each original behind it: memory peaks at the model plus one
  // matrix. INVALID_ARGUMENT names the option, limit and value; RESOURCE_EXHAUSTED when the memory
  // cannot be had.
  static absl::StatusOr<std::unique_ptr<CpuExecutor>> Create(IntegerModel model,
                                                             const CpuExecutorOptions& options);

  const ExecutorLimits& limits() const override { return limits_; }
  // INVALID_ARGUMENT (and nothing done) for chunks that break the rules of executor.h or the
  // limits. No allocation.
  absl::Status Forward(absl::Span<const SequenceChunk> chunks, int32_t* logits) override;
  void Parallel(int32_t tasks,
                absl::FunctionRef<void(int32_t index, int32_t worker)> task) override {
    pool_.ParallelFor(tasks, 1, [&](int64_t index, int64_t, int worker) {
      task(static_cast<int32_t>(index), worker);
    });
  }
  int32_t workers() const override { return pool_.thread_count(); }

  const Ops& ops() const { return *ops_; }
  int32_t threads() const { return pool_.thread_count(); }
  const ModelConfig& config() const { return model_.config; }
  const std::vector<int32_t>& prefix_token_ids() const { return model_.prefix_token_ids; }
  // Nanoseconds of all steps so far; zeros without CpuExecutorOptions::profile. Not while a step
  // runs.
  const StepClock& clock() const { return clock_; }

 private:
  CpuExecutor(IntegerModel model, const Ops* ops, int32_t threads, bool pin_threads);
  absl::Status SetUp(const CpuExecutorOptions& options);
  void PackModel();
  // Of a matrix in packed_; a multiple of AlignedBuffer::kAlignment.
  size_t PackedBytes(const LinearWeights& linear) const;
  LlamaLinear Pack(LinearWeights& linear);
  LlamaLayer PackLayer(ModelLayer& layer);
  // Thread-local state of the kernel level (AMX tiles), once in each thread that works for some
  // executor.
  void PrepareThread() const;
  static void RunParallel(void* context, int32_t tasks,
                          void (*task)(void* argument, int32_t index, int32_t worker),
                          void* argument);

  IntegerModel model_;  // without the matrices that are packed
  const Ops* const ops_;
  ThreadPool pool_;
  ExecutorLimits limits_;
  AlignedBuffer packed_;                          // all matrices, one behind the other
  size_t packed_bytes_ = 0;                       // of it, taken by Pack so far
  std::vector<std::vector<ScoreParams>> scores_;  // [layers][num_attention_heads]
  std::vector<LlamaLayer> layers_;
  LlamaModel llama_;
  AlignedBuffer kv_memory_;
  LlamaKvCache cache_;
  AlignedBuffer scratch_memory_;
  LlamaScratch scratch_;
  StepClock clock_;
  std::vector<LlamaChunk> chunks_;  // of the running step; capacity max_step_tokens
};

}  // namespace fixpoint
