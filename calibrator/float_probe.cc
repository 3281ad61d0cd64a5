// float_probe MODEL TEXT TOKENS WINDOW: the importer's float forward pass on the first TOKENS
// tokens of a text, in windows of WINDOW tokens without a prefix. Prints one line a token: id,
// argmax of its logits, loss of the next token (the last of a window: "nan"). For
// tests/float_oracle_test.py.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>

#include "base/available_cpus.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "calibrator/float_forward.h"
#include "calibrator/import/checkpoint.h"
#include "calibrator/vector_loops.h"
#include "text/tokenizer.h"

namespace fixpoint {
namespace {

absl::Status Probe(const std::string& model_path, const std::string& text_path, size_t tokens,
                   int32_t window) {
  ASSIGN_OR_RETURN(const Checkpoint checkpoint, ImportCheckpoint(model_path, {}));
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                   Tokenizer::Create(checkpoint.tokenizer));
  ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(text_path, 64 << 20));
  std::vector<int32_t> ids = tokenizer->Encode(text, false);
  if (ids.size() < tokens) return absl::InvalidArgumentError("text too short");
  ThreadPool pool(AvailableCpuCount());
  const std::unique_ptr<FloatGemm> gemm = CreateCpuGemm(pool);
  const ForwardModel model =
      MakeForwardModel(checkpoint.model, {}, WeightKind::kFloat32, *gemm, pool);
  FloatForward forward(model, *gemm, pool);
  const int64_t vocab = forward.vocab_size();
  std::vector<float> logits(window * vocab);
  for (size_t begin = 0; begin + window <= tokens; begin += window) {
    forward.Run({.token_ids = ids.data() + begin, .sequences = 1, .tokens = window}, {});
    forward.Logits(0, window, logits.data());
    for (int32_t i = 0; i < window; ++i) {
      int32_t argmax = 0;
      const double log_sum = Vec().log_sum_exp(logits.data() + i * vocab, vocab, &argmax);
      const double loss =
          i + 1 < window ? log_sum - logits[i * vocab + ids[begin + i + 1]] : std::nan("");
      std::printf("%d %d %.7f\n", ids[begin + i], argmax, loss);
    }
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace fixpoint

int main(int argc, char** argv) {
  if (argc != 5) {
    std::cerr << "usage: float_probe MODEL TEXT TOKENS WINDOW\n";
    return 2;
  }
  const absl::Status status =
      fixpoint::Probe(argv[1], argv[2], std::strtoul(argv[3], nullptr, 10), std::atoi(argv[4]));
  if (!status.ok()) std::cerr << status << "\n";
  return status.ok() ? 0 : 1;
}
