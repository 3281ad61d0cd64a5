// Speed of the serving engine on this machine, without a network: what scheduling costs beside the
// forward pass, what batching brings, what prompts do to running streams, what the prefix cache and
// prompt lookup save. Before timing, the golden digest is compared with the bundle's; where a
// feature must not change tokens, they are compared too.
//
//   engine_bench BUNDLE [--threads N] [--repeat 5]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "bundle/bundle.h"
#include "engine/cpu_executor.h"
#include "engine/engine.h"
#include "engine/golden.h"
#include "text/tokenizer.h"

namespace fixpoint {
namespace {

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double Percentile(std::vector<double> values, double share) {
  CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1) + 0.5)];
}
double Median(std::vector<double> values) { return Percentile(std::move(values), 0.5); }

// Steps as the engine thread reports them.
class Recorder final : public EngineObserver {
 public:
  void OnStep(int32_t sequences, int32_t tokens, absl::Duration forward,
              absl::Duration other) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (sequences == 1 && tokens == 1) {
      forward_.push_back(absl::ToDoubleSeconds(forward));
      other_.push_back(absl::ToDoubleSeconds(other));
    }
  }
  void OnDraft(int32_t drafted, int32_t accepted) override {
    std::lock_guard<std::mutex> lock(mutex_);
    drafted_ += drafted;
    accepted_ += accepted;
  }
  void Clear() {
    std::lock_guard<std::mutex> lock(mutex_);
    forward_.clear();
    other_.clear();
    drafted_ = accepted_ = 0;
  }
  // Of steps with one sequence and one token.
  std::vector<double> forward() {
    std::lock_guard<std::mutex> lock(mutex_);
    return forward_;
  }
  std::vector<double> other() {
    std::lock_guard<std::mutex> lock(mutex_);
    return other_;
  }
  std::pair<int64_t, int64_t> drafts() {
    std::lock_guard<std::mutex> lock(mutex_);
    return {drafted_, accepted_};
  }

 private:
  std::mutex mutex_;
  std::vector<double> forward_, other_;
  int64_t drafted_ = 0, accepted_ = 0;
};

struct Answer {
  std::vector<int32_t> tokens;
  std::vector<double> times;  // of each, from submission, in seconds
  int32_t cached_tokens = 0;
};

class Bench {
 public:
  Bench(Engine& engine, Recorder& recorder, const Tokenizer& tokenizer, int repeat)
      : engine_(engine), recorder_(recorder), tokenizer_(tokenizer), repeat_(repeat) {}

  void Overhead();
  void Batching();
  void PromptsBesideStreams();
  void CachedPrefix();
  void Speculation();

 private:
  // Tokens that no other call gives.
  std::vector<int32_t> FreshPrompt(int32_t length) {
    std::vector<int32_t> prompt(static_cast<size_t>(length));
    ++fresh_;
    for (size_t i = 0; i < prompt.size(); ++i) {
      prompt[i] = static_cast<int32_t>((i * 7919 + fresh_ * 104729 + 13) %
                                       static_cast<size_t>(engine_.limits().vocab_size));
    }
    return prompt;
  }

  std::shared_ptr<Stream> Submit(Request request) {
    absl::StatusOr<std::shared_ptr<Stream>> stream = engine_.Submit(std::move(request));
    CHECK(stream.ok()) << stream.status().ToString();
    return *std::move(stream);
  }

  Request Plain(std::vector<int32_t> prompt, int32_t max_tokens) {
    Request request;
    request.prompt = std::move(prompt);
    request.max_tokens = max_tokens;
    request.ignore_eos = true;
    request.speculation = fixpoint::Speculation::kOff;
    return request;
  }

  static Answer Read(Stream& stream, double start) {
    Answer answer;
    Event event;
    while (stream.Next(&event, absl::Minutes(10))) {
      answer.cached_tokens = event.cached_tokens;
      if (event.finished) {
        CHECK(event.reason == FinishReason::kLength || event.reason == FinishReason::kStop);
        return answer;
      }
      answer.tokens.push_back(event.token_id);
      answer.times.push_back(Seconds() - start);
    }
    CHECK(false) << "no end";
    return answer;
  }

  Answer Run(Request request) {
    const double start = Seconds();
    return Read(*Submit(std::move(request)), start);
  }

  // `count` streams at once; tokens a second from the first token of the last one on would flatter,
  // so the whole time counts, short prompts included.
  double Throughput(int count, int32_t tokens, bool sampled = false) {
    std::vector<std::shared_ptr<Stream>> streams;
    const double start = Seconds();
    for (int i = 0; i < count; ++i) {
      Request request = Plain(FreshPrompt(16), tokens);
      if (sampled) {
        request.sampling.inverse_temperature_q16 = 65536;
        request.sampling.top_p_q16 = 62259;  // 0.95
      }
      streams.push_back(Submit(std::move(request)));
    }
    for (const auto& stream : streams) Read(*stream, start);
    return count * tokens / (Seconds() - start);
  }

  Engine& engine_;
  Recorder& recorder_;
  const Tokenizer& tokenizer_;
  const int repeat_;
  size_t fresh_ = 0;
};

void Bench::Overhead() {
  recorder_.Clear();
  for (int i = 0; i < repeat_; ++i) Run(Plain(FreshPrompt(16), 128));
  const double forward = Median(recorder_.forward()), other = Median(recorder_.other());
  std::printf(
      "step with one token     forward %8.1f us   other %6.1f us (%.1f %%), medians of %zu\n",
      forward * 1e6, other * 1e6, 100 * other / forward, recorder_.forward().size());
}

void Bench::Batching() {
  constexpr int kStreams[] = {1, 2, 4, 8, 16, 32, 64};
  std::vector<std::vector<double>> rates(std::size(kStreams));
  std::vector<double> sampled;
  for (int round = 0; round < repeat_; ++round) {
    for (size_t i = 0; i < std::size(kStreams); ++i)
      rates[i].push_back(Throughput(kStreams[i], 64));
    sampled.push_back(Throughput(32, 64, true));
  }
  for (size_t i = 0; i < std::size(kStreams); ++i) {
    const double rate = Median(rates[i]);
    std::printf("%2d streams              %9.1f tokens/s   %5.2f x one stream\n", kStreams[i], rate,
                rate / Median(rates[0]));
  }
  std::printf("32 streams, sampled     %9.1f tokens/s   temperature 1, top_p 0.95\n",
              Median(sampled));
}

// Time between two tokens of eight streams, alone and while prompts of 2,000 tokens arrive.
void Bench::PromptsBesideStreams() {
  constexpr int kStreams = 8;
  const int32_t prompt_tokens = std::min(2000, engine_.limits().max_prompt_tokens - 8);
  const auto gaps = [&](bool with_prompts, double* prompt_seconds) {
    std::vector<std::shared_ptr<Stream>> streams;
    const double start = Seconds();
    for (int i = 0; i < kStreams; ++i) streams.push_back(Submit(Plain(FreshPrompt(16), 256)));
    std::thread prompts([&] {
      for (int i = 0; with_prompts && i < 2; ++i)
        *prompt_seconds = Run(Plain(FreshPrompt(prompt_tokens), 1)).times[0];
    });
    std::vector<std::vector<double>> times(kStreams);
    std::vector<std::thread> readers;
    for (size_t i = 0; i < kStreams; ++i) {
      readers.emplace_back([&, i] { times[i] = Read(*streams[i], start).times; });
    }
    for (std::thread& reader : readers) reader.join();
    prompts.join();
    std::vector<double> result;
    for (const std::vector<double>& of_stream : times) {
      for (size_t i = 17; i < of_stream.size(); ++i)  // when all streams decode
        result.push_back(of_stream[i] - of_stream[i - 1]);
    }
    return result;
  };
  double ignored = 0, prompt_seconds = 0;
  std::vector<double> p50, p99, first_token;
  for (int i = 0; i < repeat_; ++i) {
    p50.push_back(Percentile(gaps(false, &ignored), 0.5));
    p99.push_back(Percentile(gaps(true, &prompt_seconds), 0.99));
    first_token.push_back(prompt_seconds);
  }
  std::printf(
      "8 streams               p50 %.2f ms between tokens alone; p99 %.2f ms (%.2f x) while"
      " prompts of %d tokens arrive, whose first token takes %.0f ms\n",
      Median(p50) * 1e3, Median(p99) * 1e3, Median(p99) / Median(p50), prompt_tokens,
      Median(first_token) * 1e3);
}

void Bench::CachedPrefix() {
  const int32_t tokens = std::min(1000, engine_.limits().max_prompt_tokens - 8);
  std::vector<double> miss, hit;
  for (int i = 0; i < repeat_; ++i) {
    std::vector<int32_t> prompt = FreshPrompt(tokens);
    prompt.push_back(1);
    Request request = Plain(prompt, 4);
    const Answer first = Run(request);
    request.prompt.back() = 2;
    const Answer second = Run(request);
    request.use_cache = false;
    CHECK(Run(request).tokens == second.tokens) << "the prefix cache changed an answer";
    CHECK_GT(second.cached_tokens, tokens - 2 * 64);
    miss.push_back(first.times[0]);
    hit.push_back(second.times[0]);
  }
  std::printf("prefix of %d tokens   first token after %.1f ms, cached %.1f ms (%.1f %%)\n", tokens,
              Median(miss) * 1e3, Median(hit) * 1e3, 100 * Median(hit) / Median(miss));
}

constexpr const char* kCode = R"(def read_settings(path):
    settings = {}
    with open(path) as file:
        for line in file:
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            name, value = line.split("=", 1)
            settings[name.strip()] = value.strip()
    return settings


def write_settings(path, settings):
    with open(path, "w") as file:
        for name, value in sorted(settings.items()):
            file.write(name + " = " + value + "\n")
)";
constexpr const char* kArticle =
    "The lighthouse at the mouth of the river was built of grey granite in 1851, after a storm had "
    "sunk three fishing boats within sight of the harbour. Its keeper lived with his family in two "
    "rooms below the lamp, and climbed one hundred and twelve steps every evening to light it. The "
    "lamp burned whale oil for its first twenty years, then paraffin, and from 1926 on "
    "electricity. "
    "In 1968 the last keeper left the tower, and a clock has switched the lamp on and off since "
    "then. The building belongs to the town now, and visitors may climb the stairs on Sundays.";

// The same answers with and without prompt lookup, on prompts whose answers repeat them.
void Bench::Speculation() {
  const std::pair<const char*, std::string> prompts[] = {
      {"code editing", absl::StrCat("```python\n", kCode,
                                    "```\n\nThe same code with a comment in "
                                    "front of each function:\n\n```python\n")},
      {"summarising", absl::StrCat("Article: ", kArticle, "\n\nThe same article, shortened: ")},
      {"free text", "Once upon a time, in a village by the sea, there was"}};
  for (const auto& [name, text] : prompts) {
    const std::vector<int32_t> ids = tokenizer_.Encode(text, false);
    std::vector<double> off, automatic, on;
    recorder_.Clear();
    for (int i = 0; i < repeat_; ++i) {
      std::vector<int32_t> tokens;
      for (const auto mode : {fixpoint::Speculation::kOff, fixpoint::Speculation::kAuto,
                              fixpoint::Speculation::kOn}) {
        Request request = Plain(ids, 192);
        request.speculation = mode;
        const Answer answer = Run(request);
        if (tokens.empty()) tokens = answer.tokens;
        CHECK(tokens == answer.tokens) << "drafts changed an answer";
        const double rate = static_cast<double>(answer.tokens.size() - 1) /
                            (answer.times.back() - answer.times.front());
        (mode == fixpoint::Speculation::kOff    ? off
         : mode == fixpoint::Speculation::kAuto ? automatic
                                                : on)
            .push_back(rate);
      }
    }
    const auto [drafted, accepted] = recorder_.drafts();
    std::printf(
        "%-14s          %7.1f tokens/s, prompt lookup auto %.2f x, on %.2f x (%.0f %% of "
        "drafts right), same tokens\n",
        name, Median(off), Median(automatic) / Median(off), Median(on) / Median(off),
        drafted > 0 ? 100.0 * static_cast<double>(accepted) / static_cast<double>(drafted) : 0.0);
  }
}

absl::Status Main(const std::string& path, int threads, int repeat) {
  absl::StatusOr<Bundle> bundle = ReadBundle(path);
  if (!bundle.ok()) return bundle.status();
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Create(bundle->tokenizer);
  if (!tokenizer.ok()) return tokenizer.status();
  CpuExecutorOptions options;
  options.threads = threads;
  absl::StatusOr<std::unique_ptr<CpuExecutor>> executor =
      CpuExecutor::Create(std::move(bundle->model), options);
  if (!executor.ok()) return executor.status();
  absl::StatusOr<std::string> digest = GoldenDigest(**executor, GoldenPrompts(**tokenizer));
  if (!digest.ok()) return digest.status();
  if (*digest != bundle->golden_digest) {
    return absl::DataLossError(
        "golden digest differs from the bundle's: wrong results are not timed");
  }
  EngineOptions engine_options;
  engine_options.prefix_token_ids = (*executor)->prefix_token_ids();
  engine_options.logit_fraction_bits = (*executor)->config().logit_fraction_bits;
  Recorder recorder;
  const std::unique_ptr<Engine> engine = Engine::Create(executor->get(), engine_options, &recorder);
  std::printf("kernel level %s, %d threads, golden digest equal; medians of %d\n",
              (*executor)->ops().name, (*executor)->threads(), repeat);
  Bench bench(*engine, recorder, **tokenizer, repeat);
  bench.Overhead();
  bench.Batching();
  bench.PromptsBesideStreams();
  bench.CachedPrefix();
  bench.Speculation();
  return absl::OkStatus();
}

}  // namespace
}  // namespace fixpoint

int main(int argc, char** argv) {
  std::string bundle;
  int threads = 0, repeat = 5;
  CLI::App app("Speed of the serving engine on this machine");
  app.add_option("bundle", bundle, "model.fixpoint")->required();
  app.add_option("--threads", threads, "0: all")->check(CLI::Range(0, 1024));
  app.add_option("--repeat", repeat, "measurements; medians are printed")->check(CLI::Range(1, 99));
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = fixpoint::Main(bundle, threads, repeat);
  if (status.ok()) return 0;
  std::fprintf(stderr, "engine_bench: %s\n", status.ToString().c_str());
  return 1;
}
