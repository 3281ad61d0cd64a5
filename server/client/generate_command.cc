#include <iostream>
#include <iterator>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/json_writer.h"
#include "base/status_macros.h"
#include "server/client/commands.h"
#include "server/client/connection.h"
#include "server/client/generation_flags.h"
#include "server/client/stream_answer.h"

namespace fixpoint::client {
namespace {

struct GenerateFlags {
  GenerationFlags generation;
  std::string prompt;
  bool json = false;
};

std::string AnswerJson(const StreamedAnswer& answer) {
  JsonWriter json;
  json.BeginObject();
  json.Field("text", answer.text);
  json.Key("token_ids");
  json.BeginArray();
  for (const uint32_t id : answer.token_ids) json.Uint(id);
  json.EndArray();
  json.Field("finish_reason", FinishReasonName(answer.finished.reason()));
  json.Key("usage");
  json.BeginObject();
  json.Field("prompt_tokens", answer.finished.usage().prompt_tokens());
  json.Field("cached_tokens", answer.finished.usage().cached_tokens());
  json.Field("completion_tokens", answer.finished.usage().completion_tokens());
  json.EndObject();
  json.Field("system_fingerprint", answer.started.system_fingerprint());
  json.Field("request_id", answer.started.request_id());
  json.EndObject();
  return json.Take();
}

absl::Status RunGenerate(const GenerateFlags& flags) {
  ASSIGN_OR_RETURN(
      const Connection connection,
      Connect(flags.generation.targets, absl::Seconds(flags.generation.connect_timeout)));
  v1::GenerateRequest request = flags.generation.ToRequest();
  request.mutable_prompt()->set_text(TextOrStdin(flags.prompt));
  const auto print = [&](absl::string_view text) {
    if (!flags.json) std::cout << text << std::flush;
  };
  const absl::StatusOr<StreamedAnswer> answer = StreamAnswer(connection.stub.get(), request, print);
  if (!answer.ok()) return answer.status();
  std::cout << (flags.json ? AnswerJson(*answer) : "") << std::endl;
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
  AddGenerationFlags(command, &flags->generation);
  command->add_option("--prompt", flags->prompt, "The text, or - for stdin")->required();
  command->add_flag("--json", flags->json, "One JSON object at the end instead of the text");
  command->callback([flags, exit_code] { *exit_code = Report(RunGenerate(*flags)); });
}

}  // namespace fixpoint::client
