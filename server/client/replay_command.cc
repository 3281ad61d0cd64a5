// fixpoint replay. Exit status: 0 all answers are equal, 1 one of them differs, 2 it could not be
// found out (no such file, no server, another model).
#include <algorithm>
#include <iostream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "server/client/commands.h"
#include "server/client/receipt_check.h"
#include "server/client/replay.h"
#include "server/client/target_flags.h"

namespace fixpoint::client {
namespace {

constexpr uint64_t kMaxFileBytes = uint64_t{256} << 20;
constexpr int kDiffers = 1;
constexpr int kFailed = 2;

struct ReplayFlags {
  TargetFlags target;
  std::string file;
  bool any_fingerprint = false;
};

absl::StatusOr<std::vector<AnswerRecord>> ReadRecords(const std::string& file) {
  std::string text;
  if (file == "-") {
    text = TextOrStdin(file);
  } else {
    ASSIGN_OR_RETURN(text, ReadWholeFile(file, kMaxFileBytes));
  }
  absl::StatusOr<std::vector<AnswerRecord>> records = ParseRecords(text);
  if (!records.ok()) return Annotate(records.status(), file == "-" ? "stdin" : file);
  return records;
}

// Only for answers of `model` itself, and only where there is a receipt to hold against it.
absl::Status AddReceipts(Client* client, const v1::GetModelResponse& model,
                         const AnswerRecord& record, const v1::GenerateRequest& request,
                         Replayed* replayed) {
  if (replayed->finished.receipt().empty()) return absl::OkStatus();
  v1::TokenizeRequest tokenize;
  *tokenize.mutable_prompt() = request.prompt();
  ASSIGN_OR_RETURN(const v1::TokenizeResponse prompt, client->Tokenize(tokenize));
  const std::vector<uint32_t> ids(prompt.token_ids().begin(), prompt.token_ids().end());
  ASSIGN_OR_RETURN(replayed->new_receipt,
                   ComputeReceipt(model, request, ids, replayed->output_ids, replayed->finished));
  if (record.finished.receipt().empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(replayed->recorded_receipt,
                   ComputeReceipt(model, request, ids, record.output_ids, record.finished));
  return absl::OkStatus();
}

absl::StatusOr<Verdict> ReplayOne(Client* client, const v1::GetModelResponse& model,
                                  const ReplayFlags& flags, const AnswerRecord& record) {
  const v1::GenerateRequest request = ReplayRequest(record);
  CallOptions options = flags.target.ToCallOptions();
  if (!flags.any_fingerprint) options.expected_fingerprint = record.system_fingerprint;
  AnswerCollector collector;
  RETURN_IF_ERROR(client->Generate(request, options, [&](const v1::GenerateResponse& message) {
    collector.Add(message);
    return true;
  }));
  const Answer& answer = collector.answers().at(0);
  Replayed replayed{.output_ids = answer.token_ids, .finished = answer.finished};
  const std::string& fingerprint = answer.started.system_fingerprint();
  if (fingerprint != record.system_fingerprint) {
    replayed.finished.clear_receipt();  // of another model: they differ as they must
  } else if (fingerprint == model.system_fingerprint()) {
    RETURN_IF_ERROR(AddReceipts(client, model, record, request, &replayed));
  }
  return Compare(record, replayed);
}

int Fail(const absl::Status& status) {
  Report(status);
  return kFailed;
}

int RunReplay(const ReplayFlags& flags) {
  const auto records = ReadRecords(flags.file);
  if (!records.ok()) return Fail(records.status());
  const auto client = Client::Create(flags.target.ToOptions());
  if (!client.ok()) return Fail(client.status());
  const auto model = (*client)->GetModel();
  if (!model.ok()) return Fail(model.status());
  int exit_code = 0;
  for (size_t i = 0; i < records->size(); ++i) {
    const std::string name = absl::StrCat("answer ", i + 1);
    const auto verdict = ReplayOne(client->get(), *model, flags, (*records)[i]);
    if (!verdict.ok()) {
      exit_code = Fail(Annotate(verdict.status(), name));
      continue;
    }
    std::cout << name << ": " << verdict->sentence << std::endl;
    if (!verdict->equal) exit_code = std::max(exit_code, kDiffers);
  }
  return exit_code;
}

}  // namespace

void AddReplayCommand(CLI::App* app, int* exit_code) {
  auto flags = std::make_shared<ReplayFlags>();
  CLI::App* command = app->add_subcommand(
      "replay", "Ask again for answers of generate --json; exit status 0: equal, 1: not, 2: error");
  AddCallFlags(command, &flags->target);
  command->add_option("FILE", flags->file, "What generate --json printed, or - for stdin")
      ->required();
  command->add_flag("--any-fingerprint", flags->any_fingerprint,
                    "Compare tokens with a server of another model or numerics version");
  command->callback([flags, exit_code] { *exit_code = RunReplay(*flags); });
}

}  // namespace fixpoint::client
