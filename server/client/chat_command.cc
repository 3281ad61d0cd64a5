#include <unistd.h>

#include <iostream>
#include <memory>
#include <string>

#include "base/status_macros.h"
#include "server/client/commands.h"
#include "server/client/connection.h"
#include "server/client/generation_flags.h"
#include "server/client/stream_answer.h"

namespace fixpoint::client {
namespace {

struct ChatFlags {
  GenerationFlags generation;
  std::string system;
  std::string message;
};

void AddMessage(v1::Chat* chat, const std::string& role, const std::string& content) {
  v1::ChatMessage* message = chat->add_messages();
  message->set_role(role);
  message->set_content(content);
}

// Sends the conversation so far, prints the answer and adds it. The conversation is unchanged after
// an error.
absl::Status AnswerTurn(const Connection& connection, const GenerationFlags& flags,
                        const std::string& text, v1::Chat* chat) {
  v1::Chat extended = *chat;
  AddMessage(&extended, "user", text);
  v1::GenerateRequest request = flags.ToRequest();
  *request.mutable_prompt()->mutable_chat() = extended;
  ASSIGN_OR_RETURN(const StreamedAnswer answer,
                   StreamAnswer(connection.stub.get(), request,
                                [](absl::string_view piece) { std::cout << piece << std::flush; }));
  std::cout << std::endl;
  AddMessage(&extended, "assistant", answer.text);
  *chat = std::move(extended);
  return absl::OkStatus();
}

// A turn that fails (the conversation no longer fits the context, the server drains) is reported
// and the next line is read.
void Converse(const Connection& connection, const GenerationFlags& flags, v1::Chat* chat) {
  const bool interactive = isatty(STDIN_FILENO) != 0;
  if (interactive) {
    std::cout << "Chatting with " << connection.model.model() << " on " << connection.target
              << ". An empty line or Ctrl-D ends.\n";
  }
  std::string line;
  while (true) {
    if (interactive) std::cout << "> " << std::flush;
    if (!std::getline(std::cin, line) || line.empty()) return;
    Report(AnswerTurn(connection, flags, line, chat));
  }
}

absl::Status RunChat(const ChatFlags& flags) {
  ASSIGN_OR_RETURN(
      const Connection connection,
      Connect(flags.generation.targets, absl::Seconds(flags.generation.connect_timeout)));
  v1::Chat chat;
  if (!flags.system.empty()) AddMessage(&chat, "system", flags.system);
  if (!flags.message.empty())
    return AnswerTurn(connection, flags.generation, TextOrStdin(flags.message), &chat);
  Converse(connection, flags.generation, &chat);
  return absl::OkStatus();
}

}  // namespace

void AddChatCommand(CLI::App* app, int* exit_code) {
  auto flags = std::make_shared<ChatFlags>();
  CLI::App* command = app->add_subcommand(
      "chat", "Talk to the model, one line a turn; with --message one turn only");
  AddGenerationFlags(command, &flags->generation);
  command->add_option("--system", flags->system, "System message in front of the conversation");
  command->add_option("--message", flags->message, "The user's message, or - for stdin");
  command->callback([flags, exit_code] { *exit_code = Report(RunChat(*flags)); });
}

}  // namespace fixpoint::client
