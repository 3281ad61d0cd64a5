#include "server/model_loader.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/available_memory.h"
#include "base/status_macros.h"
#include "bundle/format.h"
#include "engine/cpu_executor.h"
#include "engine/engine.h"
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

}  // namespace

absl::Status CheckDevice(const std::string& device) {
  if (device == "cpu") return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--device: unknown device '", device, "'; this build serves on: cpu"));
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
  RETURN_IF_ERROR(CheckDevice(options.device));
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
  CpuExecutorOptions executor_options{.threads = options.threads,
                                      .kv_cache_bytes = options.kv_cache_bytes};
  // A step must hold one token and one row of logits of each running request, and some prompt.
  executor_options.max_step_logits =
      std::max(executor_options.max_step_logits, options.max_running);
  executor_options.max_step_tokens = std::max(
      executor_options.max_step_tokens, options.max_running + engine_options.mixed_prefill_tokens);
  if (executor_options.kv_cache_bytes == 0) {
    ASSIGN_OR_RETURN(const int64_t free_bytes, AvailableMemoryBytes());
    executor_options.kv_cache_bytes =
        AutomaticKvCacheBytes(bundle.model, options.max_running, free_bytes);
  }
  ASSIGN_OR_RETURN(std::unique_ptr<CpuExecutor> executor,
                   CpuExecutor::Create(std::move(bundle.model), executor_options));
  RETURN_IF_ERROR(
      RunSelfTest(*executor, *tokenizer, bundle.golden_digest, options.self_test_budget));
  std::unique_ptr<Engine> engine = Engine::Create(executor.get(), engine_options, observer);
  ModelIdentity identity{.name = name,
                         .bundle_digest = bundle.digest,
                         .numerics_version = kNumericsVersion,
                         .device = options.device};
  ConstraintMaker constraints = MakeConstraints(*tokenizer);
  return std::make_shared<ServedModel>(std::move(identity), std::move(tokenizer), std::move(chat),
                                       std::move(executor), std::move(engine),
                                       std::move(constraints));
}

}  // namespace fixpoint
