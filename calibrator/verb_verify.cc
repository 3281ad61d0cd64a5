#include <iostream>

#include "absl/strings/str_cat.h"
#include "base/json_writer.h"
#include "base/status_macros.h"
#include "bundle/bundle.h"
#include "calibrator/verbs.h"
#include "engine/cpu_executor.h"
#include "engine/golden.h"

namespace fixpoint {

absl::Status RunVerify(const VerifyFlags& flags) {
  ASSIGN_OR_RETURN(const int threads, ResolveThreads(flags.threads));
  if (flags.chunk < 0)
    return absl::InvalidArgumentError(
        absl::StrCat("--chunk ", flags.chunk, ": must not be negative"));
  ASSIGN_OR_RETURN(Bundle bundle, ReadBundle(flags.bundle, threads));
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Create(bundle.tokenizer));
  const CpuExecutorOptions options{.threads = threads};
  ASSIGN_OR_RETURN(const std::unique_ptr<CpuExecutor> executor,
                   CpuExecutor::Create(std::move(bundle.model), options));
  ASSIGN_OR_RETURN(const std::string digest,
                   GoldenDigest(*executor, GoldenPrompts(*tokenizer), flags.chunk));
  const bool stored = !bundle.golden_digest.empty();
  if (flags.json) {
    JsonWriter json;
    json.BeginObject();
    json.Field("golden_digest", digest);
    if (stored) json.Field("stored_digest", bundle.golden_digest);
    json.Field("matches", stored && digest == bundle.golden_digest);
    json.Field("kernels", executor->ops().name);
    json.Field("threads", executor->threads());
    json.EndObject();
    std::cout << json.Take() << "\n";
  } else {
    std::cout << digest << "  " << flags.bundle << " (" << executor->ops().name << ", "
              << executor->threads() << " threads)\n";
  }
  if (!stored)
    return absl::FailedPreconditionError(
        absl::StrCat(flags.bundle, ": the bundle stores no golden digest to compare with"));
  if (digest != bundle.golden_digest) {
    return absl::DataLossError(absl::StrCat(flags.bundle, ": golden digest ", digest,
                                            " is not the stored ", bundle.golden_digest));
  }
  return absl::OkStatus();
}

}  // namespace fixpoint
