// Speed of a whole model on this machine: prefill of a prompt and decode of one or more sequences.
// Before timing, the golden digest is compared with the bundle's. Prints work done, rate, and the
// share of the machine's streaming bandwidth (decode reads every weight once a step), measured in
// the same run.
//
//   model_bench BUNDLE [--threads N] [--prefill 512] [--decode 64] [--batch 1] [--repeat 5]
//   [--pin-threads] [--profile] [--json]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "bench/limits.h"
#include "bundle/bundle.h"
#include "engine/cpu_executor.h"
#include "engine/golden.h"
#include "engine/sampler.h"
#include "text/tokenizer.h"

namespace fixpoint {
namespace {

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Bytes of weights that one decode step reads: all linear layers and the head.
double WeightBytes(const IntegerModel& model) {
  double bytes = static_cast<double>(model.head.weights.size());
  for (const ModelLayer& l : model.layers) {
    bytes += static_cast<double>(l.qkv.weights.size() + l.o_proj.weights.size() +
                                 l.gate_up.weights.size() + l.down_proj.weights.size());
  }
  return bytes;
}

struct Options {
  std::string bundle;
  int threads = 0, prefill = 512, decode = 64, batch = 1, repeat = 5;
  bool json = false, profile = false, pin = false;
};

// Multiplications for one token and bytes of weights of each linear part of a step.
struct PartWork {
  double weights = 0;
  double tokens = 0;  // that pass through it in prefill
};

std::vector<PartWork> Work(const IntegerModel& model, const Options& o) {
  std::vector<PartWork> work(static_cast<size_t>(StepPart::kNumParts));
  const auto add = [&](StepPart part, const LinearWeights& linear, double tokens) {
    PartWork& w = work[static_cast<size_t>(part)];
    w.weights += static_cast<double>(linear.weights.size());
    w.tokens = tokens;
  };
  const double tokens = static_cast<double>(o.prefill) * o.batch;
  for (const ModelLayer& l : model.layers) {
    add(StepPart::kQkv, l.qkv, tokens);
    add(StepPart::kO, l.o_proj, tokens);
    add(StepPart::kGateUp, l.gate_up, tokens);
    add(StepPart::kDown, l.down_proj, tokens);
  }
  add(StepPart::kHead, model.head, o.batch);
  return work;
}

// Where the time went. int16 inputs are counted as int8.
void PrintProfile(const char* phase, const StepClock& clock, const std::vector<PartWork>& work,
                  bool prefill, int calls) {
  double all = 0;
  for (int i = 0; i < static_cast<int>(StepPart::kNumParts); ++i)
    all += static_cast<double>(clock.taken[i]);
  std::printf("%s, ms for each run\n", phase);
  for (int i = 0; i < static_cast<int>(StepPart::kNumParts); ++i) {
    const double ns = static_cast<double>(clock.taken[i]);
    if (ns == 0) continue;
    const PartWork& w = work[static_cast<size_t>(i)];
    std::printf("  %-10s %9.3f  %5.1f %%", StepPartName(static_cast<StepPart>(i)), ns / 1e6 / calls,
                100 * ns / all);
    if (w.weights > 0 && prefill)
      std::printf("  %8.3f TOPS", 2 * w.weights * w.tokens * calls / ns / 1e3);
    if (w.weights > 0 && !prefill) std::printf("  %8.2f GB/s", w.weights * calls / ns);
    std::printf("\n");
  }
}

struct Figures {
  double prefill_tokens_per_s = 0, decode_tokens_per_s = 0, step_ms = 0;
  StepClock between;  // prefill and decode
};

// `batch` sequences of `prefill` tokens each, then `decode` steps of one token each.
absl::StatusOr<Figures> RunOnce(CpuExecutor& executor, const Options& o) {
  const int32_t vocab = executor.limits().vocab_size;
  const int32_t blocks = (o.prefill + o.decode + kKvBlockTokens - 1) / kKvBlockTokens;
  if (blocks * o.batch > executor.limits().num_blocks) {
    return absl::InvalidArgumentError("KV cache too small for this batch");
  }
  std::vector<int32_t> table(static_cast<size_t>(blocks * o.batch));
  std::iota(table.begin(), table.end(), 0);
  std::vector<int32_t> logits(static_cast<size_t>(vocab) * static_cast<size_t>(o.batch));
  std::vector<int32_t> prompt(static_cast<size_t>(o.prefill));
  for (size_t i = 0; i < prompt.size(); ++i) {
    prompt[i] = static_cast<int32_t>((i * 7919 + 13) % static_cast<size_t>(vocab));
  }
  const auto sequence_table = [&](int s) {
    return absl::MakeConstSpan(table).subspan(static_cast<size_t>(s * blocks),
                                              static_cast<size_t>(blocks));
  };
  Figures figures;
  const double start = Seconds();
  for (int s = 0; s < o.batch; ++s) {
    for (int32_t at = 0; at < o.prefill; at += executor.limits().max_step_tokens) {
      const int32_t n = std::min(executor.limits().max_step_tokens, o.prefill - at);
      const int32_t last = n - 1;
      const bool ends = at + n == o.prefill;
      const SequenceChunk chunk{
          absl::MakeConstSpan(prompt).subspan(static_cast<size_t>(at), static_cast<size_t>(n)), at,
          sequence_table(s), absl::MakeConstSpan(&last, ends ? 1 : 0)};
      if (absl::Status status = executor.Forward({&chunk, 1}, logits.data()); !status.ok())
        return status;
    }
  }
  figures.prefill_tokens_per_s = o.prefill * o.batch / (Seconds() - start);
  figures.between = executor.clock();
  const int32_t zero = 0;
  std::vector<int32_t> next(static_cast<size_t>(o.batch), 1);
  const double decode_start = Seconds();
  for (int step = 0; step < o.decode; ++step) {
    std::vector<SequenceChunk> chunks;
    for (int s = 0; s < o.batch; ++s) {
      chunks.push_back(
          {{&next[static_cast<size_t>(s)], 1}, o.prefill + step, sequence_table(s), {&zero, 1}});
    }
    if (absl::Status status = executor.Forward(chunks, logits.data()); !status.ok()) return status;
    executor.Parallel(o.batch, [&](int32_t s, int32_t) {  // as the engine chooses
      next[static_cast<size_t>(s)] =
          Argmax(logits.data() + static_cast<size_t>(s) * static_cast<size_t>(vocab), vocab);
    });
  }
  const double seconds = Seconds() - decode_start;
  figures.decode_tokens_per_s = o.decode * o.batch / seconds;
  figures.step_ms = seconds * 1e3 / o.decode;
  return figures;
}

absl::Status Main(const Options& o) {
  absl::StatusOr<Bundle> bundle = ReadBundle(o.bundle);
  if (!bundle.ok()) return bundle.status();
  const double weight_bytes = WeightBytes(bundle->model);
  const std::vector<PartWork> work = Work(bundle->model, o);
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Create(bundle->tokenizer);
  if (!tokenizer.ok()) return tokenizer.status();
  CpuExecutorOptions options;
  options.threads = o.threads;
  options.profile = o.profile;
  options.pin_threads = o.pin;
  options.max_step_logits = std::max(64, o.batch);
  absl::StatusOr<std::unique_ptr<CpuExecutor>> executor =
      CpuExecutor::Create(std::move(bundle->model), options);
  if (!executor.ok()) return executor.status();
  absl::StatusOr<std::string> digest = GoldenDigest(**executor, GoldenPrompts(**tokenizer));
  if (!digest.ok()) return digest.status();
  if (*digest != bundle->golden_digest) {
    return absl::DataLossError(
        "golden digest differs from the bundle's: wrong results are not timed");
  }
  std::vector<double> prefill, decode, step;
  StepClock prefill_clock, decode_clock;  // sums over the counted runs
  for (int i = 0; i < o.repeat + 1; ++i) {
    const StepClock before = (*executor)->clock();
    absl::StatusOr<Figures> figures = RunOnce(**executor, o);
    if (!figures.ok()) return figures.status();
    if (i == 0) continue;  // warm-up
    prefill.push_back(figures->prefill_tokens_per_s);
    decode.push_back(figures->decode_tokens_per_s);
    step.push_back(figures->step_ms);
    for (int p = 0; p < static_cast<int>(StepPart::kNumParts); ++p) {
      prefill_clock.taken[p] += figures->between.taken[p] - before.taken[p];
      decode_clock.taken[p] += (*executor)->clock().taken[p] - figures->between.taken[p];
    }
  }
  const double bandwidth = bench::StreamingBandwidth((*executor)->threads()) / 1e9;
  const double used = weight_bytes / 1e6 / Median(step);
  if (o.json) {
    std::printf(
        "{\"isa\":\"%s\",\"threads\":%d,\"prefill_tokens\":%d,\"batch\":%d,\"prefill_tokens_per_"
        "s\":%.1f,"
        "\"decode_tokens_per_s\":%.1f,\"weight_gb_per_s\":%.2f,\"streaming_gb_per_s\":%.2f}\n",
        (*executor)->ops().name, (*executor)->threads(), o.prefill, o.batch, Median(prefill),
        Median(decode), used, bandwidth);
    return absl::OkStatus();
  }
  std::printf("kernel level %s, %d threads, golden digest equal; medians of %d\n",
              (*executor)->ops().name, (*executor)->threads(), o.repeat);
  std::printf("prefill  %5d tokens x %d   %9.1f tokens/s\n", o.prefill, o.batch, Median(prefill));
  std::printf("decode   %5d steps  x %d   %9.1f tokens/s   %.3f ms a step\n", o.decode, o.batch,
              Median(decode), Median(step));
  std::printf(
      "weights read %.1f MB a step: %.1f GB/s, %.0f %% of %.1f GB/s streaming bandwidth measured "
      "here\n",
      weight_bytes / 1e6, used, 100 * used / bandwidth, bandwidth);
  if (o.profile) {
    PrintProfile("prefill", prefill_clock, work, true, o.repeat);
    PrintProfile("decode", decode_clock, work, false, o.repeat * o.decode);
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace fixpoint

int main(int argc, char** argv) {
  fixpoint::Options o;
  CLI::App app("Prefill and decode speed of a bundle on this machine");
  app.add_option("bundle", o.bundle, "model.fixpoint")->required();
  app.add_option("--threads", o.threads, "0: all")->check(CLI::Range(0, 1024));
  app.add_flag("--pin-threads", o.pin, "a CPU for each thread but the first");
  app.add_option("--prefill", o.prefill, "prompt tokens")->check(CLI::Range(1, 100000));
  app.add_option("--decode", o.decode, "steps")->check(CLI::Range(1, 100000));
  app.add_option("--batch", o.batch, "sequences")->check(CLI::Range(1, 256));
  app.add_option("--repeat", o.repeat, "counted runs")->check(CLI::Range(1, 1000));
  app.add_flag("--profile", o.profile, "time, rate and share of each part of a step");
  app.add_flag("--json", o.json, "one line of JSON");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = fixpoint::Main(o);
  if (!status.ok()) {
    std::fprintf(stderr, "model_bench: %s\n", std::string(status.message()).c_str());
    return 1;
  }
  return 0;
}
