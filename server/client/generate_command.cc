#include <iostream>
#include <iterator>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "server/client/answer_record.h"
#include "server/client/commands.h"
#include "server/client/generation_flags.h"
#include "server/client/target_flags.h"

namespace fixpoint::client {
namespace {

struct GenerateFlags {
  TargetFlags target;
  GenerationFlags generation;
  std::vector<std::string> prompts;
  std::vector<uint32_t> prompt_ids;
  std::optional<uint32_t> n;
  bool echo = false;
  bool json = false;
};

absl::StatusOr<v1::GenerateRequest> BuildRequest(const GenerateFlags& flags) {
  ASSIGN_OR_RETURN(v1::GenerateRequest request, flags.generation.ToRequest());
  if (flags.prompts.empty() && flags.prompt_ids.empty()) {
    return absl::InvalidArgumentError("--prompt or --prompt-ids is needed");
  }
  const bool wants_logprobs =
      flags.generation.top_logprobs.has_value() || flags.generation.prompt_logprobs.has_value();
  if (wants_logprobs && !flags.json) {
    return absl::InvalidArgumentError("--logprobs and --prompt-logprobs need --json");
  }
  for (const uint32_t id : flags.prompt_ids) {
    request.mutable_prompt()->mutable_token_ids()->add_ids(id);
  }
  for (size_t i = 0; i < flags.prompts.size(); ++i) {
    v1::Prompt* prompt = i == 0 ? request.mutable_prompt() : request.add_more_prompts();
    prompt->set_text(TextOrStdin(flags.prompts[i]));
  }
  if (flags.n.has_value()) request.set_n(*flags.n);
  if (flags.echo) request.mutable_output()->set_echo(true);
  return request;
}

uint32_t ChoicesPerPrompt(const v1::GenerateRequest& request) {
  return request.has_n() ? request.n() : 1;
}

void PrintRecords(const v1::GenerateRequest& request, const AnswerCollector& collector,
                  const std::string& target) {
  const uint32_t n = ChoicesPerPrompt(request);
  for (const auto& [choice, answer] : collector.answers()) {
    const auto prompt = collector.prompts().find(choice / n);
    const bool tells_prompt = choice % n == 0 && prompt != collector.prompts().end();
    std::cout << RecordJson(request, choice, answer, tells_prompt ? &prompt->second : nullptr,
                            target)
              << "\n";
  }
  std::cout << std::flush;
}

// Several answers come mixed, so each is printed when all are there.
void PrintTexts(const v1::GenerateRequest& request, const AnswerCollector& collector) {
  const uint32_t n = ChoicesPerPrompt(request);
  for (const auto& [choice, answer] : collector.answers()) {
    const auto prompt = collector.prompts().find(choice / n);
    std::cout << "== prompt " << choice / n << ", choice " << choice % n << " ==\n"
              << (prompt == collector.prompts().end() ? "" : prompt->second.text) << answer.text
              << "\n";
  }
  std::cout << std::flush;
}

absl::Status RunGenerate(const GenerateFlags& flags) {
  ASSIGN_OR_RETURN(const v1::GenerateRequest request, BuildRequest(flags));
  ASSIGN_OR_RETURN(const auto client, Client::Create(flags.target.ToOptions()));
  const bool single = ChoicesPerPrompt(request) == 1 && request.more_prompts_size() == 0;
  const bool streams = single && !flags.json;
  AnswerCollector collector;
  CallReport report;
  bool printed = false;
  const auto on_message = [&](const v1::GenerateResponse& message) {
    collector.Add(message);
    const std::string& text =
        message.has_prompt_part() ? message.prompt_part().text() : message.delta().text();
    if (streams && !text.empty()) {
      std::cout << text << std::flush;
      printed = true;
    }
    return std::cout.good();  // nobody reads on: leave
  };
  const absl::Status status =
      client->Generate(request, flags.target.ToCallOptions(), on_message, &report);
  if (streams && (printed || status.ok())) std::cout << std::endl;
  RETURN_IF_ERROR(status);
  if (flags.json) {
    PrintRecords(request, collector, report.target);
  } else if (!streams) {
    PrintTexts(request, collector);
  }
  return absl::OkStatus();
}

}  // namespace

std::string TextOrStdin(const std::string& text) {
  if (text != "-") return text;
  return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
}

void AddGenerateCommand(CLI::App* app, int* exit_code) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* command =
      app->add_subcommand("generate", "Continue a text; the answer streams to stdout");
  AddCallFlags(command, &flags->target);
  AddGenerationFlags(command, &flags->generation);
  CLI::Option* prompt = command
                            ->add_option("--prompt", flags->prompts,
                                         "The text, or - for stdin; given several times: a batch")
                            ->take_all()
                            ->allow_extra_args(false);
  CLI::Option* prompt_ids = command
                                ->add_option("--prompt-ids", flags->prompt_ids,
                                             "ID[,ID...]: the prompt as token ids, nothing added")
                                ->delimiter(',')
                                ->take_all()
                                ->allow_extra_args(false)
                                ->excludes(prompt);
  prompt->excludes(prompt_ids);
  command->add_option("-n,--n", flags->n, "Answers to each prompt; answer i has the seed + i");
  command->add_flag("--echo", flags->echo, "The prompt's text in front of the answer's");
  command->add_flag("--json", flags->json,
                    "One JSON object a line for each answer, at the end: see replay");
  command->callback([flags, exit_code] { *exit_code = Report(RunGenerate(*flags)); });
}

}  // namespace fixpoint::client
