// golden_digest BUNDLE: the golden digest of a bundle on the kernel level that FIXPOINT_ISA names
// (the best one without it), as "level digest". Fails if the bundle records another one, or none:
// what fixpoint-calibrate verify does, for builds without the calibrator.
#include <iostream>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "bundle/bundle.h"
#include "engine/cpu_executor.h"
#include "engine/golden.h"
#include "text/tokenizer.h"

namespace fixpoint {
namespace {

absl::StatusOr<std::string> Check(const std::string& path) {
  ASSIGN_OR_RETURN(Bundle bundle, ReadBundle(path));
  const std::string recorded = std::move(bundle.golden_digest);
  ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Create(std::move(bundle.tokenizer)));
  ASSIGN_OR_RETURN(const auto executor, CpuExecutor::Create(std::move(bundle.model), {}));
  ASSIGN_OR_RETURN(const std::string digest, GoldenDigest(*executor, GoldenPrompts(*tokenizer)));
  if (digest != recorded) {
    return absl::DataLossError(absl::StrCat(path, ": digest ", digest, " on ", executor->ops().name,
                                            ", recorded: ", recorded.empty() ? "none" : recorded));
  }
  return absl::StrCat(executor->ops().name, " ", digest);
}

}  // namespace
}  // namespace fixpoint

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: golden_digest BUNDLE" << std::endl;
    return 2;
  }
  const auto line = fixpoint::Check(argv[1]);
  if (!line.ok()) {
    std::cerr << "golden_digest: " << line.status().message() << std::endl;
    return 1;
  }
  std::cout << *line << std::endl;
  return 0;
}
