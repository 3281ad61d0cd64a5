#include <unistd.h>

#include <iostream>
#include <memory>
#include <string>

#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "server/client/answer_record.h"
#include "server/client/commands.h"
#include "server/client/generation_flags.h"
#include "server/client/target_flags.h"

namespace fixpoint::client {
namespace {

struct ChatFlags {
  TargetFlags target;
  GenerationFlags generation;
  std::string system;
  std::string message;
  bool json = false;
};

void AddMessage(v1::Chat* chat, const std::string& role, const std::string& content) {
  v1::ChatMessage* message = chat->add_messages();
  message->set_role(role);
  message->set_content(content);
}

// Sends the conversation so far, prints the answer and adds it. The conversation is unchanged after
// an error.
absl::Status AnswerTurn(Client* client, const ChatFlags& flags, const std::string& text,
                        v1::Chat* chat) {
  v1::Chat extended = *chat;
  AddMessage(&extended, "user", text);
  ASSIGN_OR_RETURN(v1::GenerateRequest request, flags.generation.ToRequest());
  *request.mutable_prompt()->mutable_chat() = extended;
  AnswerCollector collector;
  CallReport report;
  bool printed = false;
  const auto on_message = [&](const v1::GenerateResponse& message) {
    collector.Add(message);
    if (!flags.json && !message.delta().text().empty()) {
      std::cout << message.delta().text() << std::flush;
      printed = true;
    }
    return std::cout.good();
  };
  const absl::Status status =
      client->Generate(request, flags.target.ToCallOptions(), on_message, &report);
  if (!flags.json && (printed || status.ok())) std::cout << std::endl;
  RETURN_IF_ERROR(status);
  const Answer& answer = collector.answers().at(0);
  if (flags.json) {
    const auto prompt = collector.prompts().find(0);
    std::cout << RecordJson(request, 0, answer,
                            prompt == collector.prompts().end() ? nullptr : &prompt->second,
                            report.target)
              << std::endl;
  }
  AddMessage(&extended, "assistant", answer.text);
  *chat = std::move(extended);
  return absl::OkStatus();
}

// A turn that fails (the conversation no longer fits the context, the server drains) is reported
// and the next line is read.
absl::Status Converse(Client* client, const ChatFlags& flags, v1::Chat* chat) {
  std::string target;
  ASSIGN_OR_RETURN(const v1::GetModelResponse model, client->GetModel(&target));
  const bool interactive = isatty(STDIN_FILENO) != 0;
  if (interactive) {
    std::cout << "Chatting with " << model.model() << " on " << target
              << ". An empty line or Ctrl-D ends.\n";
  }
  std::string line;
  while (true) {
    if (interactive) std::cout << "> " << std::flush;
    if (!std::getline(std::cin, line) || line.empty()) return absl::OkStatus();
    Report(AnswerTurn(client, flags, line, chat));
  }
}

absl::Status RunChat(const ChatFlags& flags) {
  if (!flags.json &&
      (flags.generation.top_logprobs.has_value() || flags.generation.prompt_logprobs.has_value())) {
    return absl::InvalidArgumentError("--logprobs and --prompt-logprobs need --json");
  }
  if (flags.message.empty() && !flags.generation.resume_ids.empty()) {
    return absl::InvalidArgumentError("--resume-ids needs --message: it belongs to one answer");
  }
  ASSIGN_OR_RETURN(const auto client, Client::Create(flags.target.ToOptions()));
  v1::Chat chat;
  if (!flags.system.empty()) AddMessage(&chat, "system", flags.system);
  if (flags.message.empty()) return Converse(client.get(), flags, &chat);
  return AnswerTurn(client.get(), flags, TextOrStdin(flags.message), &chat);
}

}  // namespace

void AddChatCommand(CLI::App* app, int* exit_code) {
  auto flags = std::make_shared<ChatFlags>();
  CLI::App* command = app->add_subcommand(
      "chat", "Talk to the model, one line a turn; with --message one turn only");
  AddCallFlags(command, &flags->target);
  AddGenerationFlags(command, &flags->generation);
  command->add_option("--system", flags->system, "System message in front of the conversation");
  command->add_option("--message", flags->message, "The user's message, or - for stdin");
  command->add_flag("--json", flags->json, "One JSON object a line for each answer: see replay");
  command->callback([flags, exit_code] { *exit_code = Report(RunChat(*flags)); });
}

}  // namespace fixpoint::client
