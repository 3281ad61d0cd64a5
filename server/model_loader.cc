#include "server/model_loader.h"

#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "bundle/format.h"
#include "engine/cpu_executor.h"
#include "engine/engine.h"
#include "server/chat_renderer.h"

namespace fixpoint {

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
  ASSIGN_OR_RETURN(std::unique_ptr<Tokenizer> tokenizer,
                   Tokenizer::Create(std::move(bundle.tokenizer)));
  const CpuExecutorOptions executor_options{.threads = options.threads,
                                            .kv_cache_bytes = options.kv_cache_bytes};
  ASSIGN_OR_RETURN(std::unique_ptr<CpuExecutor> executor,
                   CpuExecutor::Create(std::move(bundle.model), executor_options));
  std::unique_ptr<Engine> engine = Engine::Create(executor.get(), engine_options, observer);
  ModelIdentity identity{.name = name,
                         .bundle_digest = bundle.digest,
                         .numerics_version = kNumericsVersion,
                         .device = options.device};
  return std::make_shared<ServedModel>(std::move(identity), std::move(tokenizer), std::move(chat),
                                       std::move(executor), std::move(engine));
}

}  // namespace fixpoint
