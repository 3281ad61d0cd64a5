#include "server/model_loader.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/available_memory.h"
#include "base/status_macros.h"
#include "bundle/format.h"
#include "engine/cpu_executor.h"
#include "engine/cuda_executor.h"
#include "engine/engine.h"
#include "engine/nvidia_device.h"
#include "engine/nvidia_group.h"
#include "engine/tensor_parallel.h"
#include "grammar/constraint_factory.h"
#include "server/chat_renderer.h"
#include "server/log.h"
#include "server/self_test.h"

namespace fixpoint {
namespace {

absl::Status RunSelfTest(Executor& executor, const Tokenizer& tokenizer,
                         const std::string& golden_digest, absl::Duration budget) {
  ASSIGN_OR_RETURN(const SelfTestResult result,
                   SelfTest(executor, tokenizer, golden_digest, budget));
  const bool golden = result.kind == SelfTestKind::kGolden;
  LogLine line(LogLevel::kInfo, "self_test");
  line.Add("compared", golden ? "golden digest" : "one prompt, chunked and whole");
  if (!golden) line.Add("why_not_golden", result.why_not_golden);
  line.Add("seconds", absl::ToDoubleSeconds(result.taken)).Write();
  return absl::OkStatus();
}

// A model that cannot end an answer, or has no single bytes, is served without constraints.
ConstraintMaker MakeConstraints(const Tokenizer& tokenizer) {
  absl::StatusOr<std::unique_ptr<ConstraintFactory>> created =
      ConstraintFactory::Create(tokenizer, tokenizer.spec().eos_ids);
  if (!created.ok()) {
    LogLine(LogLevel::kWarning, "no_constraints").Add("error", created.status().message()).Write();
    return nullptr;
  }
  const std::shared_ptr<ConstraintFactory> factory = *std::move(created);
  return [factory](const ConstraintSpec& spec) -> absl::StatusOr<std::shared_ptr<TokenConstraint>> {
    switch (spec.kind) {
      case ConstraintKind::kJsonSchema:
        return factory->JsonSchema(spec.text);
      case ConstraintKind::kRegex:
        return factory->Regex(spec.text);
      case ConstraintKind::kJsonObject:
        return factory->JsonObject();
      case ConstraintKind::kNone:
        break;
    }
    return std::shared_ptr<TokenConstraint>();
  };
}

// N of "cuda:N".
std::optional<int> CudaIndex(absl::string_view device) {
  int index = 0;
  if (!absl::ConsumePrefix(&device, "cuda:") || device.empty() || !absl::ascii_isdigit(device[0]) ||
      !absl::SimpleAtoi(device, &index)) {
    return std::nullopt;
  }
  return index;
}

// "cuda:0-3" for four of them.
std::string DeviceName(const LoadOptions& options) {
  if (options.tensor_parallel == 1) return options.device;
  return absl::StrCat(options.device, "-",
                      *CudaIndex(options.device) + options.tensor_parallel - 1);
}

absl::StatusOr<std::unique_ptr<Executor>> CreateCpuExecutor(IntegerModel model,
                                                            const LoadOptions& options,
                                                            CpuExecutorOptions executor_options) {
  executor_options.threads = options.threads;
  executor_options.pin_threads = options.pin_threads;
  executor_options.kv_cache_bytes = options.kv_cache_bytes;
  if (executor_options.kv_cache_bytes == 0) {
    ASSIGN_OR_RETURN(const int64_t free_bytes, AvailableMemoryBytes());
    executor_options.kv_cache_bytes = AutomaticKvCacheBytes(model, options.max_running, free_bytes);
  }
  return CpuExecutor::Create(std::move(model), executor_options);
}

// A step must hold one token and one row of logits of each running request, and some prompt.
absl::StatusOr<std::unique_ptr<Executor>> CreateExecutor(IntegerModel model,
                                                         const LoadOptions& options,
                                                         int mixed_prefill_tokens) {
  const int least_tokens = options.max_running + mixed_prefill_tokens;
  const std::optional<int> cuda = CudaIndex(options.device);
  if (!cuda.has_value()) {
    CpuExecutorOptions cpu_options;
    cpu_options.max_step_logits = std::max(cpu_options.max_step_logits, options.max_running);
    cpu_options.max_step_tokens = std::max(cpu_options.max_step_tokens, least_tokens);
    return CreateCpuExecutor(std::move(model), options, cpu_options);
  }
  CudaExecutorOptions cuda_options{.kv_cache_bytes = options.kv_cache_bytes};
  cuda_options.max_step_logits = std::max(cuda_options.max_step_logits, options.max_running);
  cuda_options.max_step_tokens = std::max(cuda_options.max_step_tokens, least_tokens);
  const MatmulLog log = [](const std::string& line) {
    LogLine(LogLevel::kWarning, "cuda_algorithms").Add("what", line).Write();
  };
  // Before the devices are opened, which takes longer.
  RETURN_IF_ERROR(CheckTensorParallel(model.config, options.tensor_parallel));
  ASSIGN_OR_RETURN(
      CudaDeviceGroup group,
      CreateNvidiaGroup(*cuda, options.tensor_parallel,
                        {.algorithm_cache = options.cuda_algorithm_cache, .log = log}));
  return CudaExecutor::Create(std::move(model), std::move(group), cuda_options);
}

}  // namespace

absl::Status CheckDevice(const std::string& device, int tensor_parallel) {
  if (tensor_parallel != 1 && device == "cpu") {
    return absl::InvalidArgumentError(
        absl::StrCat("--tensor-parallel ", tensor_parallel, " needs GPUs: --device cuda:N"));
  }
  if (tensor_parallel != 1 && tensor_parallel != 2 && tensor_parallel != 4 &&
      tensor_parallel != 8) {
    return absl::InvalidArgumentError(
        absl::StrCat("--tensor-parallel is ", tensor_parallel, ", must be 1, 2, 4 or 8"));
  }
  if (device == "cpu" || (BuiltWithCuda() && CudaIndex(device).has_value())) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("--device: unknown device '", device,
                                                 "'; this build serves on: cpu",
                                                 BuiltWithCuda() ? ", cuda:N" : ""));
}

std::string ModelName(const std::string& path) {
  std::filesystem::path name = std::filesystem::path(path).lexically_normal();
  if (name.filename().empty()) name = name.parent_path();  // a directory with a slash behind it
  return name.stem().string();
}

int64_t AutomaticKvCacheBytes(const IntegerModel& model, int max_running, int64_t free_bytes) {
  const int64_t one = KvSequenceBytes(model);
  return std::clamp(free_bytes / 2, one, one * max_running);
}

absl::StatusOr<std::shared_ptr<ServedModel>> LoadModel(Bundle bundle, const std::string& name,
                                                       const LoadOptions& options,
                                                       EngineObserver* observer) {
  RETURN_IF_ERROR(CheckDevice(options.device, options.tensor_parallel));
  ASSIGN_OR_RETURN(ChatRenderer chat, MakeChatRenderer(bundle.chat_template, bundle.tokenizer));
  EngineOptions engine_options;
  engine_options.prefix_token_ids = bundle.model.prefix_token_ids;
  engine_options.eos_ids = bundle.tokenizer.eos_ids;
  engine_options.logit_fraction_bits = bundle.model.config.logit_fraction_bits;
  engine_options.max_queue_requests = options.max_queue_requests;
  engine_options.max_queue_tokens = options.max_queue_tokens;
  engine_options.max_queue_time = options.max_queue_time;
  engine_options.max_running = options.max_running;
  ASSIGN_OR_RETURN(std::unique_ptr<Tokenizer> tokenizer,
                   Tokenizer::Create(std::move(bundle.tokenizer)));
  ASSIGN_OR_RETURN(
      std::unique_ptr<Executor> executor,
      CreateExecutor(std::move(bundle.model), options, engine_options.mixed_prefill_tokens));
  RETURN_IF_ERROR(
      RunSelfTest(*executor, *tokenizer, bundle.golden_digest, options.self_test_budget));
  std::unique_ptr<Engine> engine = Engine::Create(executor.get(), engine_options, observer);
  ModelIdentity identity{.name = name,
                         .bundle_digest = bundle.digest,
                         .numerics_version = kNumericsVersion,
                         .device = DeviceName(options)};
  ConstraintMaker constraints = MakeConstraints(*tokenizer);
  return std::make_shared<ServedModel>(std::move(identity), std::move(tokenizer), std::move(chat),
                                       std::move(executor), std::move(engine),
                                       std::move(constraints));
}

}  // namespace fixpoint
