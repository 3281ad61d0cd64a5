// One GPU's part of a CudaExecutor: the whole model, or the part of it that ShardModel has cut out.
// Enqueues the launches of a step in parts, each of which ends where the ranks of a group have to
// add up their sums.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "bundle/model.h"
#include "engine/cuda_device.h"
#include "engine/cuda_model.h"
#include "engine/cuda_plan.h"

namespace fixpoint {

struct CudaRankOptions {
  bool use_matmul = true;     // cuBLASLt for more than kSkinnyTokens rows, where the device has it
  bool partial_sums = false;  // one of several: o_proj and down_proj give parts of sums
  int32_t least_slice_tokens = 256;  // CudaExecutorOptions
};

// Used by one thread at a time. Errors of the device are passed on: it is lost then.
class CudaRank {
 public:
  // Copies the model to the device. `shape` has the rank's heads. RESOURCE_EXHAUSTED when the
  // device has too little memory.
  static absl::StatusOr<std::unique_ptr<CudaRank>> Create(IntegerModel model,
                                                          std::unique_ptr<CudaDevice> device,
                                                          const CudaPlanShape& shape,
                                                          const CudaRankOptions& options);

  CudaDevice& device() { return *device_; }
  // KV blocks, of this rank's heads, that nine tenths of the free memory have room for: at least
  // one, or RESOURCE_EXHAUSTED.
  absl::StatusOr<int64_t> FreeBlocks();
  // Once, before the first step.
  absl::Status AllocateCache(int64_t blocks);

  // The parts of a step, in order: embedding and first attention; then, of each layer, MLP and what
  // follows it, which is the next layer's attention or the head. Upload comes first.
  int32_t parts() const { return 2 * cuda_model_.llama.num_layers + 1; }
  absl::Status Upload(const CudaPlan& plan, const int8_t* host_plan);
  absl::Status Run(const CudaPlan& plan, int32_t part);
  // What every part but the last leaves behind with the option partial_sums, to be replaced by the
  // sum over all ranks: both planes of an int16 site, as it is rounded only behind the sum.
  absl::Span<int32_t> partial_sums();

  // Waits for the step. Rows [first, first + rows) of config.vocab_size logits, each `stride`
  // elements behind the other.
  absl::Status DownloadLogits(int32_t first, int32_t rows, int64_t stride, int32_t* logits);
  // The tokens of the step's first rows, to page-locked memory, which has them behind Synchronize.
  // Not of partial_sums: no rank has a whole row then.
  absl::Status EnqueueTokens(int32_t rows, int32_t* tokens);
  absl::Status Synchronize() { return device_->Synchronize(); }

 private:
  enum class SumOver { kThisRank, kAllRanks };

  // Working memory of one step on the device. T = PaddedTokens(max_tokens), R of max_rows.
  struct Scratch {
    int8_t* plan = nullptr;  // MaxPlanBytes
    int32_t* h = nullptr;    // [T][hidden_size]
    ActivationPlanes normed, attended, activated, head_in;
    int8_t* q = nullptr;  // [T][q_stride]
    size_t q_stride = 0;
    int32_t* acc = nullptr;  // acc_elements: planes and splits of the layer at hand
    int64_t acc_elements = 0;
    int32_t* logits = nullptr;  // [R][config.vocab_size]
    int32_t* tokens = nullptr;  // [R]
    int32_t *scores = nullptr, *maxima = nullptr, *denominators = nullptr, *sums = nullptr;
    void* workspace = nullptr;
    int64_t workspace_bytes = 0;
  };

  CudaRank(std::unique_ptr<CudaDevice> device, const ModelConfig& config,
           const CudaPlanShape& shape, const CudaRankOptions& options)
      : device_(std::move(device)), config_(config), shape_(shape), options_(options) {}
  absl::Status SetUp(IntegerModel model);
  absl::Status PrepareMatmuls();
  // Lays the scratch out from `memory` and returns its bytes; with null it only counts.
  int64_t LayOutScratch(int8_t* memory);

  absl::Status Embed(const CudaPlan& plan);
  // Adds the sums of the last product to `tokens` rows of h; then `norm`, unless it is null.
  absl::Status Residual(const WideParams& requantize, const LlamaNorm* norm, int32_t first,
                        int32_t tokens);
  absl::Status AfterAttention(int32_t index, int32_t first, int32_t tokens);
  absl::Status AfterMlp(int32_t index, int32_t first, int32_t tokens);
  absl::Status Attention(const CudaPlan& plan, int32_t index);
  absl::Status Attend(const CudaPlan& plan, const LlamaLayer& layer, const KvLayer& cache);
  absl::Status Mlp(const CudaPlan& plan, int32_t index);
  absl::Status Head(const CudaPlan& plan);
  // sums_ = x . W, by our kernel or cuBLASLt.
  absl::Status Linear(const LlamaLinear& linear, const ActivationPlanes& x, bool wide,
                      int32_t tokens, SumOver sum_over);
  // Linear and `consume(first token, tokens)`, for one slice of the tokens after the other.
  template <typename Consume>
  absl::Status InSlices(const LlamaLinear& linear, const ActivationPlanes& x, bool wide,
                        int32_t tokens, Consume consume);
  int32_t SliceTokens(const LlamaLinear& linear, bool wide, int32_t tokens) const;
  // One plane of cuBLASLt's product with `rows` rows, the first of x.
  CudaMatmul MatmulOf(const LlamaLinear& linear, const ActivationPlanes& x, int64_t rows) const;
  absl::Status LargeLinear(const LlamaLinear& linear, const ActivationPlanes& x, int32_t tokens);
  int32_t Splits(const LlamaLinear& linear, int32_t tokens, int32_t planes) const;
  CudaNorm NormInto(const LlamaNorm& norm, const ActivationPlanes& out) const;
  template <typename T>
  const T* InPlan(size_t offset) const {
    return reinterpret_cast<const T*>(scratch_.plan + offset);
  }

  const std::unique_ptr<CudaDevice> device_;  // owns all memory
  const ModelConfig config_;
  const CudaPlanShape shape_;
  const CudaRankOptions options_;  // use_matmul: the device has it
  CudaModel cuda_model_;
  int8_t* kv_base_ = nullptr;
  int64_t block_bytes_ = 0;  // of one KV block
  int64_t layer_bytes_ = 0;  // of one of its layers
  Scratch scratch_;
  Accumulators sums_;   // of the last product
  int32_t tokens_ = 0;  // of the last product
};

}  // namespace fixpoint
