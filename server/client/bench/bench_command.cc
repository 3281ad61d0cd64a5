#include <algorithm>
#include <iostream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "server/client/bench/bench_report.h"
#include "server/client/commands.h"
#include "server/client/target_flags.h"

namespace fixpoint::client {
namespace {

constexpr uint64_t kMaxTextBytes = 16 << 20;
constexpr size_t kTokenizeBytes = 64 << 10;
constexpr double kMaxSeconds = 7 * 86400.0;

struct BenchFlags {
  TargetFlags target;
  LoadOptions load;
  std::string prompt_tokens = "128";
  std::string output_tokens = "64";
  WorkloadOptions workload;
  std::string text_file;
  int connections = 1;
  double temperature = 0;
  bool stop_at_eos = false;
  bool no_cache = false;
  std::string speculation;
  int priority = 0;
  std::string json_file;
  std::string plot_file;
};

// The text's tokens, made in pieces that end where a line or at least a code point does.
absl::StatusOr<std::vector<uint32_t>> TokensOfText(Client* client, const std::string& text,
                                                   size_t piece_bytes) {
  std::vector<uint32_t> ids;
  for (size_t at = 0; at < text.size();) {
    size_t end = std::min(text.size(), at + piece_bytes);
    if (end < text.size()) {
      const size_t line = text.rfind('\n', end);
      if (line != std::string::npos && line > at) end = line + 1;
      while (end > at + 1 && (static_cast<uint8_t>(text[end]) & 0xc0) == 0x80) --end;
    }
    v1::TokenizeRequest request;
    request.mutable_prompt()->set_text(text.substr(at, end - at));
    ASSIGN_OR_RETURN(const v1::TokenizeResponse response, client->Tokenize(request));
    ids.insert(ids.end(), response.token_ids().begin(), response.token_ids().end());
    at = end;
  }
  if (ids.empty()) return absl::InvalidArgumentError("no tokens in it");
  return ids;
}

absl::StatusOr<Vocabulary> VocabularyOf(Client* client, const v1::GetModelResponse& model,
                                        const BenchFlags& flags) {
  Vocabulary vocabulary;
  vocabulary.size = model.vocab_size();
  vocabulary.not_used.assign(model.eos_ids().begin(), model.eos_ids().end());
  if (model.has_bos_id()) vocabulary.not_used.push_back(model.bos_id());
  vocabulary.max_prompt_tokens = model.max_prompt_tokens();
  vocabulary.max_context_tokens = model.max_context_tokens();
  if (flags.text_file.empty()) return vocabulary;
  ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(flags.text_file, kMaxTextBytes));
  // A token is a byte at least, so a piece of that many bytes is never too long a prompt.
  const size_t piece = std::min<size_t>(
      kTokenizeBytes,
      std::max<size_t>(std::min<size_t>(model.max_prompt_tokens() / 2, model.max_prompt_bytes()),
                       8));
  auto ids = TokensOfText(client, text, piece);
  if (!ids.ok()) return Annotate(ids.status(), flags.text_file);
  vocabulary.text = *std::move(ids);
  return vocabulary;
}

v1::GenerateRequest BaseRequest(const BenchFlags& flags) {
  v1::GenerateRequest request;
  if (flags.temperature > 0) request.mutable_sampling()->set_temperature(flags.temperature);
  if (!flags.stop_at_eos) request.mutable_stopping()->set_ignore_eos(true);
  if (flags.no_cache) request.set_use_cache(false);
  if (flags.speculation == "on") request.set_speculation(v1::SPECULATION_ON);
  if (flags.speculation == "off") request.set_speculation(v1::SPECULATION_OFF);
  if (flags.priority != 0) request.set_priority(flags.priority);
  return request;
}

absl::Status CheckLoop(const LoadOptions& load) {
  if ((load.concurrency > 0) == (load.rate > 0)) {
    return absl::InvalidArgumentError(
        "one of --concurrency (closed loop) and --rate (open loop) is needed");
  }
  if ((load.duration > 0) == (load.requests > 0)) {
    return absl::InvalidArgumentError("one of --duration and --requests is needed");
  }
  return absl::OkStatus();
}

absl::Status WriteOutputs(const BenchFlags& flags, const BenchSetup& setup,
                          const LoadResult& result) {
  std::cout << BenchText(setup, result) << std::flush;
  if (!flags.json_file.empty()) {
    RETURN_IF_ERROR(WriteFileAtomically(flags.json_file, BenchJson(setup, result)));
  }
  if (!flags.plot_file.empty()) {
    RETURN_IF_ERROR(WriteFileAtomically(flags.plot_file, RenderSvg(BenchPlot(setup, result))));
  }
  return absl::OkStatus();
}

absl::Status RunBench(BenchFlags flags) {
  RETURN_IF_ERROR(CheckLoop(flags.load));
  WorkloadOptions& options = flags.workload;
  ASSIGN_OR_RETURN(options.prompt_tokens,
                   LengthDistribution::Parse("--prompt-tokens", flags.prompt_tokens));
  ASSIGN_OR_RETURN(options.output_tokens,
                   LengthDistribution::Parse("--output-tokens", flags.output_tokens));
  if (options.shared_share > 0 && options.shared_tokens < 1) {
    return absl::InvalidArgumentError("--shared-prefix-share needs --shared-prefix-tokens");
  }
  flags.load.seed = options.seed;
  ClientOptions client_options = flags.target.ToOptions();
  client_options.order = TargetOrder::kRotating;
  client_options.connections = flags.connections;
  ASSIGN_OR_RETURN(const auto client, Client::Create(client_options));
  ASSIGN_OR_RETURN(const v1::GetModelResponse model, client->GetModel());
  ASSIGN_OR_RETURN(Vocabulary vocabulary, VocabularyOf(client.get(), model, flags));
  ASSIGN_OR_RETURN(const Workload workload, Workload::Create(options, std::move(vocabulary)));

  const v1::GenerateRequest base = BaseRequest(flags);
  const AskFunction ask = [&](const RequestSpec& spec, Cancellation* cancellation,
                              const OnMessage& on_message, CallReport* report) {
    v1::GenerateRequest request = base;
    request.mutable_prompt()->mutable_token_ids()->mutable_ids()->Add(spec.prompt.begin(),
                                                                      spec.prompt.end());
    request.mutable_stopping()->set_max_tokens(spec.max_tokens);
    CallOptions call = flags.target.ToCallOptions();
    call.cancellation = cancellation;
    return client->Generate(request, call, on_message, report);
  };
  BenchSetup setup{.targets = flags.target.targets,
                   .model = model.model(),
                   .system_fingerprint = model.system_fingerprint(),
                   .server_version = model.server_version(),
                   .load = flags.load,
                   .workload = options,
                   .prompts = flags.text_file.empty() ? "random tokens" : flags.text_file,
                   .temperature = flags.temperature,
                   .started_at = absl::FormatTime(absl::Now(), absl::UTCTimeZone())};
  ASSIGN_OR_RETURN(const LoadResult result, RunLoad(flags.load, workload, ask));
  RETURN_IF_ERROR(WriteOutputs(flags, setup, result));
  if (result.totals.finished + result.totals.left > 0) return absl::OkStatus();
  return absl::UnavailableError("not one measured request finished");
}

void AddLoadFlags(CLI::App* command, LoadOptions* load) {
  const auto seconds = CLI::Range(0.0, kMaxSeconds);
  command
      ->add_option("--concurrency", load->concurrency,
                   "Closed loop: so many streams, each one request after the other")
      ->check(CLI::Range(1, 100000));
  command
      ->add_option("--rate", load->rate,
                   "Open loop: so many requests a second (Poisson), whatever becomes of them")
      ->check(CLI::Range(0.0001, 1e6));
  command->add_option("--duration", load->duration, "Seconds to measure")->check(seconds);
  command->add_option("--requests", load->requests, "Requests to measure, instead")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  command
      ->add_option("--warmup", load->warmup,
                   "Seconds at the beginning whose requests are not measured")
      ->check(seconds)
      ->capture_default_str();
  command->add_option("--ramp", load->ramp, "Seconds in which the load rises evenly from nothing")
      ->check(seconds)
      ->capture_default_str();
  command
      ->add_option("--drain", load->drain,
                   "Seconds that open streams get at the end before they are cut off")
      ->check(seconds)
      ->capture_default_str();
  command
      ->add_option("--max-streams", load->max_streams,
                   "Open loop: streams at a time; requests beyond wait, and their latency counts")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
}

void AddWorkloadFlags(CLI::App* command, BenchFlags* flags) {
  const char* forms = "N, uniform:LEAST:MOST or lognormal:MEDIAN:SIGMA[:LEAST:MOST]";
  WorkloadOptions* workload = &flags->workload;
  command->add_option("--prompt-tokens", flags->prompt_tokens, forms)->capture_default_str();
  command->add_option("--output-tokens", flags->output_tokens, forms)->capture_default_str();
  command->add_option("--text", flags->text_file,
                      "Prompts are pieces of this file; default: random tokens");
  command
      ->add_option("--shared-prefix-share", workload->shared_share,
                   "Share of requests that begin with a shared prefix")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command
      ->add_option("--shared-prefix-tokens", workload->shared_tokens,
                   "Length of the prefix; the prompt's length stays, its last token is its own")
      ->check(CLI::Range(int64_t{0}, LengthDistribution::kNoBound));
  command->add_option("--shared-prefixes", workload->shared_prefixes, "How many different ones")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  command
      ->add_option("--cancel-share", workload->cancel_share,
                   "Share of requests that are left at a random token")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command->add_option("--seed", workload->seed, "The same seed asks the same")
      ->capture_default_str();
}

}  // namespace

void AddBenchCommand(CLI::App* app, int* exit_code) {
  auto flags = std::make_shared<BenchFlags>();
  flags->target.retries = 0;  // failures are to be seen
  CLI::App* command = app->add_subcommand(
      "bench", "Load generator: latency percentiles, throughput, failures by code");
  AddCallFlags(command, &flags->target);
  AddLoadFlags(command, &flags->load);
  AddWorkloadFlags(command, flags.get());
  command
      ->add_option("--connections", flags->connections, "Connections to each target, used in turn")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  command->add_option("--temperature", flags->temperature, "0: greedy")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  command->add_flag("--stop-at-eos", flags->stop_at_eos,
                    "Answers may end early; else each has its length");
  command->add_flag("--no-cache", flags->no_cache, "Requests do not use the prefix cache");
  command->add_option("--speculation", flags->speculation, "Prompt lookup of the requests")
      ->check(CLI::IsMember({"auto", "on", "off"}));
  command->add_option("--priority", flags->priority, "Of the requests")
      ->check(CLI::Range(-100, 100));
  command->add_option("--json", flags->json_file, "Write everything to this file as JSON");
  command->add_option("--plot", flags->plot_file, "Write latencies and throughput over time (SVG)");
  command->callback([flags, exit_code] { *exit_code = Report(RunBench(*flags)); });
}

}  // namespace fixpoint::client
