// Executor on an NVIDIA GPU: the forward pass of engine/models/llama.h as launches of the kernels
// of kernels/cuda/, with the same bits. Everything on the device lives in one piece of memory that
// is laid out at the start; a step allocates nothing.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bundle/model.h"
#include "engine/cuda_device.h"
#include "engine/cuda_model.h"
#include "engine/cuda_plan.h"
#include "engine/executor.h"

namespace fixpoint {

inline constexpr int32_t kMaxCudaStepTokens = 32768;  // grids have at most 65535 rows
inline constexpr int32_t kMaxCudaStepLogits = 4096;

struct CudaExecutorOptions {
  int64_t kv_cache_bytes = 0;     // 0: what is free behind everything else, less a tenth of it
  int32_t max_step_tokens = 512;  // [1, kMaxCudaStepTokens]
  int32_t max_step_logits = 64;   // [1, min(max_step_tokens, kMaxCudaStepLogits)]
  int64_t decode_bytes = int64_t{128} << 20;  // at least 0; scratch of attention with split keys
  // A step of more tokens is cut where the accumulators of a layer would leave three quarters of
  // the L2 cache before they are read. Each slice reads the weights again: at least this many.
  int32_t least_slice_tokens = 256;
  bool use_matmul = true;  // cuBLASLt for more than kSkinnyTokens rows, where the device has it
};

class CudaExecutor final : public Executor {
 public:
  // `model` has passed ValidateModel (ReadBundle does it). Copies it to the device and frees the
  // original's weights on the way. INVALID_ARGUMENT names the option, limit and value;
  // RESOURCE_EXHAUSTED when the device has too little memory; other errors are the device's.
  static absl::StatusOr<std::unique_ptr<CudaExecutor>> Create(IntegerModel model,
                                                              std::unique_ptr<CudaDevice> device,
                                                              const CudaExecutorOptions& options);

  const ExecutorLimits& limits() const override { return limits_; }
  // INVALID_ARGUMENT (and nothing done) for chunks that break the rules of executor.h or the
  // limits. After an error of the device every later call returns the same error: it is lost.
  absl::Status Forward(absl::Span<const SequenceChunk> chunks, int32_t* logits) override;

 private:
  // Working memory of one step on the device. T = max_step_tokens, R = max_step_logits.
  struct Scratch {
    int8_t* plan = nullptr;  // MaxPlanBytes
    int32_t* h = nullptr;    // [T][hidden_size]
    ActivationPlanes normed, attended, activated, head_in;
    int8_t* q = nullptr;  // [T][q_stride]
    size_t q_stride = 0;
    int32_t* acc = nullptr;  // acc_elements: planes and splits of the layer at hand
    int64_t acc_elements = 0;
    int32_t* logits = nullptr;  // [R][vocab_size]
    int32_t *scores = nullptr, *maxima = nullptr, *denominators = nullptr, *sums = nullptr;
    void* workspace = nullptr;
    int64_t workspace_bytes = 0;
  };

  CudaExecutor(IntegerModel model, std::unique_ptr<CudaDevice> device)
      : device_(std::move(device)), model_(std::move(model)) {}
  absl::Status SetUp(const CudaExecutorOptions& options);
  absl::Status PrepareMatmuls();
  absl::StatusOr<int64_t> KvBlocks(int64_t other_bytes, int64_t kv_bytes);
  // Lays the scratch out from `memory` and returns its bytes; with null it only counts.
  int64_t LayOutScratch(int8_t* memory);

  absl::Status Step(const CudaPlan& plan);
  absl::Status Layer(const CudaPlan& plan, int32_t index);
  absl::Status Attend(const CudaPlan& plan, const LlamaLayer& layer, const KvLayer& cache);
  absl::Status Head(const CudaPlan& plan);
  // acc = x . W, by our kernel or cuBLASLt.
  absl::StatusOr<Accumulators> Linear(const LlamaLinear& linear, const ActivationPlanes& x,
                                      bool wide, int32_t tokens);
  absl::StatusOr<Accumulators> LargeLinear(const LlamaLinear& linear, const ActivationPlanes& x,
                                           int32_t tokens);
  // Linear and `consume(accumulators, first token, tokens)`, for one slice of the tokens after the
  // other.
  template <typename Consume>
  absl::Status InSlices(const LlamaLinear& linear, const ActivationPlanes& x, bool wide,
                        int32_t tokens, Consume consume);
  int32_t SliceTokens(const LlamaLinear& linear, bool wide, int32_t tokens) const;
  // One plane of cuBLASLt's product with `rows` rows, the first of x.
  CudaMatmul MatmulOf(const LlamaLinear& linear, const ActivationPlanes& x, int64_t rows) const;
  int32_t Splits(const LlamaLinear& linear, int32_t tokens, int32_t planes) const;
  CudaNorm NormInto(const LlamaNorm& norm, const ActivationPlanes& out) const;
  template <typename T>
  const T* InPlan(size_t offset) const {
    return reinterpret_cast<const T*>(scratch_.plan + offset);
  }

  std::unique_ptr<CudaDevice> device_;  // owns all memory
  IntegerModel model_;                  // without what is on the device
  ExecutorLimits limits_;
  CudaModel cuda_model_;
  CudaPlanShape plan_shape_;
  int8_t* host_plan_ = nullptr;  // page-locked
  int8_t* kv_base_ = nullptr;
  int64_t layer_bytes_ = 0;  // of one KV block
  Scratch scratch_;
  int32_t least_slice_tokens_ = 0;
  bool use_matmul_ = true;
  absl::Status lost_;  // the error that ended it
};

}  // namespace fixpoint
