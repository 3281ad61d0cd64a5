// Executor on an NVIDIA GPU, or on several that share the work of every layer: the forward pass of
// engine/models/llama.h as launches of the kernels of kernels/cuda/, with the same bits. Memory of
// the devices is allocated at the start; a step allocates nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bundle/model.h"
#include "engine/cuda_collective.h"
#include "engine/cuda_graphs.h"
#include "engine/cuda_plan.h"
#include "engine/cuda_rank.h"
#include "engine/executor.h"

namespace fixpoint {

inline constexpr int32_t kMaxCudaStepTokens = 32768;  // grids have at most 65535 rows
inline constexpr int32_t kMaxCudaStepLogits = 4096;

struct CudaExecutorOptions {
  // Over all devices. 0: what is free behind everything else, less a tenth of it.
  int64_t kv_cache_bytes = 0;
  int32_t max_step_tokens = 512;              // [1, kMaxCudaStepTokens]
  int32_t max_step_logits = 64;               // [1, min(max_step_tokens, kMaxCudaStepLogits)]
  int64_t decode_bytes = int64_t{128} << 20;  // at least 0; scratch of attention with split keys
  // A step of more tokens is cut where the accumulators of a layer would leave three quarters of
  // the L2 cache before they are read. Each slice reads the weights again: at least this many.
  int32_t least_slice_tokens = 256;
  bool use_matmul = true;  // cuBLASLt for more than kSkinnyTokens rows, where the device has it
  // Steps that only decode are replayed as CUDA graphs. On one device: NCCL warns of deadlocks
  // where one thread launches graphs with sums in them on several.
  bool use_graphs = true;
};

class CudaExecutor final : public Executor {
 public:
  // `model` has passed ValidateModel (ReadBundle does it). With one device, copies it there and
  // frees the original's weights on the way. With 2, 4 or 8, each gets a part (ShardModel) of
  // every layer and the heads and KV cache that belong to it; a second copy of that part is in the
  // host's memory meanwhile. INVALID_ARGUMENT names the option, limit and value, or what cannot be
  // cut into so many parts; RESOURCE_EXHAUSTED when a device has too little memory; other errors
  // are the devices'.
  static absl::StatusOr<std::unique_ptr<CudaExecutor>> Create(IntegerModel model,
                                                              CudaDeviceGroup group,
                                                              const CudaExecutorOptions& options);
  static absl::StatusOr<std::unique_ptr<CudaExecutor>> Create(IntegerModel model,
                                                              std::unique_ptr<CudaDevice> device,
                                                              const CudaExecutorOptions& options);

  const ExecutorLimits& limits() const override { return limits_; }
  // INVALID_ARGUMENT (and nothing done) for chunks that break the rules of executor.h or the
  // limits. After an error of any device every later call returns the same error: all are lost.
  absl::Status Forward(absl::Span<const SequenceChunk> chunks, int32_t* logits) override;
  // On one device only: several have a part of each row's logits.
  bool chooses_tokens() const override { return ranks_.size() == 1; }
  absl::Status ForwardAndChoose(absl::Span<const SequenceChunk> chunks, int32_t* logits,
                                int32_t* tokens) override;
  // Submit enqueues all of the step and the copies of its tokens; logits are copied by Wait.
  absl::Status Submit(absl::Span<const SequenceChunk> chunks, int32_t* logits,
                      int32_t* tokens) override;
  bool copies_chunks() const override { return true; }
  absl::Status Wait() override;

 private:
  // Between Submit and Wait.
  struct RunningStep {
    int32_t* logits = nullptr;
    int32_t* tokens = nullptr;  // null: all logits are wanted
    int32_t rows = 0;
  };
  struct Run {
    int32_t first = 0, rows = 0;
  };

  CudaExecutor() = default;
  absl::Status SetUp(IntegerModel model, CudaDeviceGroup group, const CudaExecutorOptions& options);
  void SetPlanShape(const ModelConfig& config, int32_t degree, int32_t multiprocessors,
                    const CudaExecutorOptions& options);
  absl::Status AddRank(IntegerModel model, std::unique_ptr<CudaDevice> device,
                       const CudaExecutorOptions& options, bool partial_sums);
  absl::Status AllocateCache(int64_t kv_bytes);

  absl::Status Step(const CudaPlan& plan, const std::optional<CudaBucket>& bucket);
  absl::Status Launch(const CudaPlan& plan);
  absl::Status AddPartialSums();
  absl::Status Start(absl::Span<const SequenceChunk> chunks, int32_t* logits, int32_t* tokens);
  void FindWantedRuns(absl::Span<const SequenceChunk> chunks, bool choose);
  absl::Status Finish(const RunningStep& step);
  absl::Status DownloadLogits(int32_t first, int32_t rows, int32_t* logits);

  ExecutorLimits limits_;
  CudaPlanShape plan_shape_;  // the same for all ranks
  std::vector<std::unique_ptr<CudaRank>> ranks_;
  std::unique_ptr<CudaCollective> collective_;  // null for one rank
  std::optional<CudaGraphs> graphs_;            // if they are used
  int8_t* host_plan_ = nullptr;                 // page-locked, as is
  int32_t* host_tokens_ = nullptr;              // [max_step_logits]
  std::optional<RunningStep> running_;
  std::vector<Run> wanted_;  // its rows whose logits are wanted
  absl::Status lost_;        // the error that ended it
};

}  // namespace fixpoint
