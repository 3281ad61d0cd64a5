#include "engine/cuda_executor.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "engine/cpu_executor.h"
#include "engine/step_check.h"
#include "engine/tensor_parallel.h"

namespace fixpoint {
absl::StatusOr<std::unique_ptr<CudaExecutor>> CudaExecutor::Create(
    IntegerModel model, CudaDeviceGroup group, const CudaExecutorOptions& options) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max() / 4;  // sums of it do not overflow
  RETURN_IF_ERROR(CheckRange("max_step_tokens", options.max_step_tokens, 1, kMaxCudaStepTokens));
  RETURN_IF_ERROR(CheckRange("max_step_logits", options.max_step_logits, 1,
                             std::min(options.max_step_tokens, kMaxCudaStepLogits)));
  RETURN_IF_ERROR(CheckRange("kv_cache_bytes", options.kv_cache_bytes, 0, kMost));
  RETURN_IF_ERROR(
      CheckRange("least_slice_tokens", options.least_slice_tokens, 1, kMaxCudaStepTokens));
  // Element counts of the scores stay in int32.
  RETURN_IF_ERROR(CheckRange("decode_bytes", options.decode_bytes, 0, int64_t{8} << 30));
  RETURN_IF_ERROR(CheckTensorParallel(model.config, static_cast<int32_t>(group.devices.size())));
  CHECK(group.devices.size() == 1 || group.collective != nullptr);
  std::unique_ptr<CudaExecutor> executor(new CudaExecutor);
  RETURN_IF_ERROR(executor->SetUp(std::move(model), std::move(group), options));
  return executor;
}

absl::StatusOr<std::unique_ptr<CudaExecutor>> CudaExecutor::Create(
    IntegerModel model, std::unique_ptr<CudaDevice> device, const CudaExecutorOptions& options) {
  CudaDeviceGroup group;
  group.devices.push_back(std::move(device));
  return Create(std::move(model), std::move(group), options);
}

absl::Status CudaExecutor::SetUp(IntegerModel model, CudaDeviceGroup group,
                                 const CudaExecutorOptions& options) {
  const ModelConfig c = model.config;
  limits_.vocab_size = c.vocab_size;
  limits_.block_tokens = kKvBlockTokens;
  limits_.block_bytes = KvBlockBytes(c);
  limits_.max_sequence_tokens =
      c.max_position_embeddings - static_cast<int32_t>(model.prefix_token_ids.size());
  RETURN_IF_ERROR(CheckRange("max_position_embeddings behind the prefix",
                             limits_.max_sequence_tokens, 1, kMaxContext));
  limits_.max_step_tokens = options.max_step_tokens;
  limits_.max_step_logits = options.max_step_logits;
  const auto degree = static_cast<int32_t>(group.devices.size());
  SetPlanShape(c, degree, group.devices[0]->multiprocessors(), options);
  ASSIGN_OR_RETURN(host_plan_,
                   group.devices[0]->AllocateHost(static_cast<int64_t>(MaxPlanBytes(plan_shape_))));
  ASSIGN_OR_RETURN(int8_t* const tokens,
                   group.devices[0]->AllocateHost(options.max_step_logits *
                                                  static_cast<int64_t>(sizeof(*host_tokens_))));
  host_tokens_ = reinterpret_cast<int32_t*>(tokens);

  collective_ = std::move(group.collective);
  if (degree == 1) {
    RETURN_IF_ERROR(AddRank(std::move(model), std::move(group.devices[0]), options, false));
  } else {
    for (int32_t r = 0; r < degree; ++r) {
      RETURN_IF_ERROR(AddRank(ShardModel(model, r, degree),
                              std::move(group.devices[static_cast<size_t>(r)]), options, true));
    }
  }
  if (options.use_graphs && degree == 1) graphs_.emplace(ranks_[0]->device());
  return AllocateCache(options.kv_cache_bytes);
}

absl::Status CudaExecutor::AddRank(IntegerModel model, std::unique_ptr<CudaDevice> device,
                                   const CudaExecutorOptions& options, bool partial_sums) {
  ASSIGN_OR_RETURN(std::unique_ptr<CudaRank> rank,
                   CudaRank::Create(std::move(model), std::move(device), plan_shape_,
                                    {.use_matmul = options.use_matmul,
                                     .partial_sums = partial_sums,
                                     .least_slice_tokens = options.least_slice_tokens}));
  ranks_.push_back(std::move(rank));
  return absl::OkStatus();
}

void CudaExecutor::SetPlanShape(const ModelConfig& c, int32_t degree, int32_t multiprocessors,
                                const CudaExecutorOptions& options) {
  // Half for the scores, half for sums, maxima and denominators.
  const int64_t elements = options.decode_bytes / 2 / static_cast<int64_t>(sizeof(int32_t));
  plan_shape_ = {
      .max_tokens = options.max_step_tokens,
      .max_rows = options.max_step_logits,
      .max_sequence_blocks = (limits_.max_sequence_tokens + kKvBlockTokens - 1) / kKvBlockTokens,
      .num_heads = c.num_attention_heads / degree,
      .kv_heads = c.num_key_value_heads / degree,
      .head_dim = c.head_dim,
      .multiprocessors = multiprocessors,
      .score_elements = elements,
      .part_rows = elements / (c.head_dim + 2),
      .logit_fraction_bits = c.logit_fraction_bits};
}

absl::Status CudaExecutor::AllocateCache(int64_t kv_bytes) {
  int64_t blocks = std::numeric_limits<int32_t>::max();
  if (kv_bytes > 0) {
    blocks = std::min(blocks, kv_bytes / limits_.block_bytes);
    if (blocks == 0) {
      return absl::InvalidArgumentError(absl::StrCat("kv_cache_bytes is ", kv_bytes,
                                                     ", one KV block needs ", limits_.block_bytes));
    }
  } else {
    for (const auto& rank : ranks_) {
      ASSIGN_OR_RETURN(const int64_t free_blocks, rank->FreeBlocks());
      blocks = std::min(blocks, free_blocks);
    }
  }
  limits_.num_blocks = static_cast<int32_t>(blocks);
  // The block behind the sequences' is that of padding.
  plan_shape_.padding_block = limits_.num_blocks;
  for (const auto& rank : ranks_) RETURN_IF_ERROR(rank->AllocateCache(blocks + 1));
  return absl::OkStatus();
}

absl::Status CudaExecutor::Forward(absl::Span<const SequenceChunk> chunks, int32_t* logits) {
  RETURN_IF_ERROR(Start(chunks, logits, nullptr));
  return Wait();
}

absl::Status CudaExecutor::ForwardAndChoose(absl::Span<const SequenceChunk> chunks, int32_t* logits,
                                            int32_t* tokens) {
  if (!chooses_tokens()) return Executor::ForwardAndChoose(chunks, logits, tokens);
  RETURN_IF_ERROR(Submit(chunks, logits, tokens));
  return Wait();
}

absl::Status CudaExecutor::Submit(absl::Span<const SequenceChunk> chunks, int32_t* logits,
                                  int32_t* tokens) {
  return Start(chunks, logits, chooses_tokens() ? tokens : nullptr);
}

absl::Status CudaExecutor::Start(absl::Span<const SequenceChunk> chunks, int32_t* logits,
                                 int32_t* tokens) {
  CHECK(!running_.has_value()) << "a step runs already";
  RETURN_IF_ERROR(lost_);
  RETURN_IF_ERROR(CheckStep(chunks, limits_));
  FindWantedRuns(chunks, tokens != nullptr);
  int32_t rows = 0;
  if (!chunks.empty()) {
    std::optional<CudaBucket> bucket;
    if (graphs_.has_value()) bucket = FindBucket(plan_shape_, chunks);
    const CudaPlan plan = MakePlan(plan_shape_, chunks, host_plan_, bucket);
    rows = plan.wanted_rows;
    lost_ = Step(plan, bucket);
  }
  if (lost_.ok() && tokens != nullptr && rows > 0) {
    lost_ = ranks_[0]->EnqueueTokens(rows, host_tokens_);
  }
  if (lost_.ok()) running_ = {logits, tokens, rows};
  return lost_;
}

// Consecutive rows as one.
void CudaExecutor::FindWantedRuns(absl::Span<const SequenceChunk> chunks, bool choose) {
  wanted_.clear();
  int32_t row = 0;
  for (const SequenceChunk& chunk : chunks) {
    for (size_t i = 0; i < chunk.logit_indices.size(); ++i, ++row) {
      if (choose && !chunk.choices.empty() && chunk.choices[i].sampling != nullptr) continue;
      if (wanted_.empty() || wanted_.back().first + wanted_.back().rows < row) {
        wanted_.push_back({.first = row});
      }
      ++wanted_.back().rows;
    }
  }
}

absl::Status CudaExecutor::Wait() {
  CHECK(running_.has_value()) << "no step runs";
  lost_ = Finish(*std::exchange(running_, std::nullopt));
  return lost_;
}

absl::Status CudaExecutor::Finish(const RunningStep& step) {
  for (const Run& run : wanted_) {
    RETURN_IF_ERROR(
        DownloadLogits(run.first, run.rows, step.logits + int64_t{run.first} * limits_.vocab_size));
  }
  // The plan's memory is written again by the next step.
  for (const auto& rank : ranks_) RETURN_IF_ERROR(rank->Synchronize());
  if (step.tokens != nullptr) std::copy_n(host_tokens_, step.rows, step.tokens);
  return absl::OkStatus();
}

absl::Status CudaExecutor::Step(const CudaPlan& plan, const std::optional<CudaBucket>& bucket) {
  for (const auto& rank : ranks_) RETURN_IF_ERROR(rank->Upload(plan, host_plan_));
  if (!bucket.has_value()) return Launch(plan);
  return graphs_->Run(*bucket, [&] { return Launch(plan); });
}

// In lockstep: each part of the step is enqueued on every rank before the sum that ends it, so that
// no rank waits on its device for one that has got nothing to do.
absl::Status CudaExecutor::Launch(const CudaPlan& plan) {
  const int32_t parts = ranks_[0]->parts();
  for (int32_t part = 0; part < parts; ++part) {
    for (const auto& rank : ranks_) RETURN_IF_ERROR(rank->Run(plan, part));
    if (ranks_.size() > 1 && part + 1 < parts) RETURN_IF_ERROR(AddPartialSums());
  }
  return absl::OkStatus();
}

absl::Status CudaExecutor::AddPartialSums() {
  std::array<int32_t*, kMaxTensorParallel> buffers = {};
  for (size_t r = 0; r < ranks_.size(); ++r) buffers[r] = ranks_[r]->partial_sums().data();
  const size_t count = ranks_[0]->partial_sums().size();
  return collective_->AllReduce(absl::MakeConstSpan(buffers).subspan(0, ranks_.size()),
                                static_cast<int64_t>(count));
}

absl::Status CudaExecutor::DownloadLogits(int32_t first, int32_t rows, int32_t* logits) {
  const auto degree = static_cast<int32_t>(ranks_.size());
  for (int32_t r = 0; r < degree; ++r) {
    RETURN_IF_ERROR(ranks_[static_cast<size_t>(r)]->DownloadLogits(
        first, rows, limits_.vocab_size,
        logits + FirstOfVocabulary(limits_.vocab_size, r, degree)));
  }
  return absl::OkStatus();
}

}  // namespace fixpoint
