// golden_integer_only BUNDLE [portable|reference] [CHUNK_TOKENS]
// Prints the golden digest of a bundle, and on stderr the time it took, computed by kernels and a
// forward pass that were compiled with -mgeneral-regs-only: a floating-point instruction in them
// would have been a compile error. Reading the file and hashing are ordinary code. The program
// links neither fixpoint_engine nor fixpoint_kernels, so no other build of these functions is in
// it.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "base/status_macros.h"
#include "bundle/bundle.h"
#include "engine/cpu_executor.h"
#include "engine/golden.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/levels.h"
#include "kernels/reference/reference_ops.h"
#include "text/tokenizer.h"

namespace fixpoint {

// Stands in for kernels/cpu/dispatch.cc, which would bring the vector levels along.
absl::StatusOr<const Ops*> SelectOps() { return &PortableOps(); }

namespace {

absl::StatusOr<std::string> Digest(const std::string& path, const Ops& ops, int32_t chunk_tokens) {
  ASSIGN_OR_RETURN(Bundle bundle, ReadBundle(path));
  ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Create(std::move(bundle.tokenizer)));
  ASSIGN_OR_RETURN(const auto executor,
                   CpuExecutor::Create(std::move(bundle.model), {.ops = &ops}));
  const std::vector<std::vector<int32_t>> prompts = GoldenPrompts(*tokenizer);
  int64_t tokens = 0;
  for (const std::vector<int32_t>& prompt : prompts) tokens += static_cast<int64_t>(prompt.size());
  const auto start = std::chrono::steady_clock::now();
  absl::StatusOr<std::string> digest = GoldenDigest(*executor, prompts, chunk_tokens);
  const int64_t ms = std::chrono::duration_cast<std::chrono::milliseconds>(
                         std::chrono::steady_clock::now() - start)
                         .count();
  std::fprintf(stderr, "%s kernels, %d threads: %lld tokens with all logits in %lld ms\n", ops.name,
               executor->threads(), static_cast<long long>(tokens), static_cast<long long>(ms));
  return digest;
}

int Main(int argc, char** argv) {
  const std::string level = argc > 2 ? argv[2] : "portable";
  int32_t chunk_tokens = 0;
  if (argc < 2 || argc > 4 || (level != "portable" && level != "reference") ||
      (argc > 3 && !absl::SimpleAtoi(argv[3], &chunk_tokens))) {
    std::fprintf(stderr, "usage: %s BUNDLE [portable|reference] [CHUNK_TOKENS]\n", argv[0]);
    return 2;
  }
  const auto digest =
      Digest(argv[1], level == "reference" ? ReferenceOps() : PortableOps(), chunk_tokens);
  if (!digest.ok()) {
    std::fprintf(stderr, "%s\n", digest.status().ToString().c_str());
    return 1;
  }
  std::printf("%s\n", digest->c_str());
  return 0;
}

}  // namespace
}  // namespace fixpoint

int main(int argc, char** argv) { return fixpoint::Main(argc, argv); }
