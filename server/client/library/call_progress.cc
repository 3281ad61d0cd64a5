#include "server/client/library/call_progress.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace fixpoint::client {
namespace {

// The server takes 8. More is its business to refuse; nothing here grows with a wild number.
constexpr uint32_t kMaxN = 64;

absl::Status Contradiction(absl::string_view what) {
  return absl::DataLossError(absl::StrCat("the server broke the contract: ", what));
}

}  // namespace

CallProgress::CallProgress(v1::GenerateRequest request, std::string expected_fingerprint)
    : request_(std::move(request)),
      choices_per_prompt_(request_.has_n() && request_.n() >= 1 && request_.n() <= kMaxN
                              ? static_cast<int>(request_.n())
                              : 1),
      fingerprint_was_asked_for_(!expected_fingerprint.empty()),
      fingerprint_(std::move(expected_fingerprint)),
      prompts_(1 + static_cast<size_t>(request_.more_prompts_size())) {
  choices_.resize(prompts_.size() * static_cast<size_t>(choices_per_prompt_));
}

bool CallProgress::Finished(int choice) const {
  if (choice != kAllChoices) return choices_[static_cast<size_t>(choice)].finished;
  return std::all_of(choices_.begin(), choices_.end(),
                     [](const ChoiceState& state) { return state.finished; });
}

int64_t CallProgress::Given(int choice) const {
  if (choice != kAllChoices) return choices_[static_cast<size_t>(choice)].given;
  int64_t sum = 0;
  for (const ChoiceState& state : choices_) sum += state.given;
  return sum;
}

int64_t CallProgress::TokensReceived(int choice) const {
  if (choice != kAllChoices) {
    return static_cast<int64_t>(choices_[static_cast<size_t>(choice)].ids.size());
  }
  int64_t sum = 0;
  for (const ChoiceState& state : choices_) sum += static_cast<int64_t>(state.ids.size());
  return sum;
}

v1::GenerateRequest CallProgress::Request(int choice) const {
  if (choice == kAllChoices) {
    CHECK_EQ(Given(kAllChoices), 0);
    return request_;
  }
  v1::GenerateRequest request = request_;
  const int prompt = choice / choices_per_prompt_;
  const int seed_step = choice % choices_per_prompt_;
  if (prompt > 0) *request.mutable_prompt() = request_.more_prompts(prompt - 1);
  request.clear_more_prompts();
  if (num_choices() > 1) request.clear_n();
  if (seed_step > 0) {
    request.mutable_sampling()->set_seed(request_.sampling().seed() +
                                         static_cast<uint64_t>(seed_step));
  }
  const ChoiceState& state = choices_[static_cast<size_t>(choice)];
  for (const uint32_t id : state.ids) request.add_resume_token_ids(id);
  // A prompt is told about once, with its first choice, in front of its tokens.
  if (request.has_output() && (seed_step > 0 || !state.ids.empty())) {
    request.mutable_output()->clear_prompt_logprobs();
    request.mutable_output()->clear_echo();
  }
  return request;
}

void CallProgress::BeginAttempt(int choice) {
  const size_t first = choice == kAllChoices ? 0 : static_cast<size_t>(choice);
  const size_t last = choice == kAllChoices ? choices_.size() : first + 1;
  for (size_t c = first; c < last; ++c) {
    choices_[c].started = false;
    choices_[c].tail.clear();
  }
}

absl::Status CallProgress::Accept(int choice, v1::GenerateResponse message,
                                  std::vector<v1::GenerateResponse>* out) {
  bool pass_on = false;
  switch (message.event_case()) {
    case v1::GenerateResponse::kStarted: {
      v1::Started* started = message.mutable_started();
      ASSIGN_OR_RETURN(const int c, Renumbered(choice, started->choice(), num_choices()));
      started->set_choice(static_cast<uint32_t>(c));
      ASSIGN_OR_RETURN(pass_on, AcceptStarted(c, *started));
      break;
    }
    case v1::GenerateResponse::kDelta: {
      v1::Delta* delta = message.mutable_delta();
      ASSIGN_OR_RETURN(const int c, Renumbered(choice, delta->choice(), num_choices()));
      delta->set_choice(static_cast<uint32_t>(c));
      ASSIGN_OR_RETURN(pass_on, AcceptDelta(c, *delta));
      break;
    }
    case v1::GenerateResponse::kFinished: {
      v1::Finished* finished = message.mutable_finished();
      ASSIGN_OR_RETURN(const int c, Renumbered(choice, finished->choice(), num_choices()));
      finished->set_choice(static_cast<uint32_t>(c));
      RETURN_IF_ERROR(AcceptFinished(c, out));
      pass_on = true;
      break;
    }
    case v1::GenerateResponse::kPromptPart: {
      ASSIGN_OR_RETURN(pass_on, AcceptPromptPart(choice, message.mutable_prompt_part()));
      break;
    }
    case v1::GenerateResponse::EVENT_NOT_SET:
      break;  // of a newer server
  }
  if (pass_on) out->push_back(std::move(message));
  return absl::OkStatus();
}

// An attempt for one choice knows it as number 0.
absl::StatusOr<int> CallProgress::Renumbered(int attempt, uint32_t number, int64_t count) const {
  if (attempt != kAllChoices) {
    if (number == 0) return attempt;
    return Contradiction(absl::StrCat("choice ", number, " of a request for one"));
  }
  if (static_cast<int64_t>(number) < count) return static_cast<int>(number);
  return Contradiction(absl::StrCat("choice ", number, " of ", count));
}

absl::StatusOr<bool> CallProgress::AcceptStarted(int choice, const v1::Started& started) {
  ChoiceState& state = choices_[static_cast<size_t>(choice)];
  if (state.started) return Contradiction("`started` twice");
  if (!fingerprint_.empty() && started.system_fingerprint() != fingerprint_) {
    return absl::FailedPreconditionError(
        absl::StrCat("it serves ", started.system_fingerprint(), ", but ",
                     fingerprint_was_asked_for_ ? "asked for is " : "the answer began on ",
                     fingerprint_, "; answers of two models are never mixed"));
  }
  fingerprint_ = started.system_fingerprint();
  state.started = true;
  return !std::exchange(state.given_started, true);
}

absl::StatusOr<bool> CallProgress::AcceptDelta(int choice, const v1::Delta& delta) {
  ChoiceState& state = choices_[static_cast<size_t>(choice)];
  if (!state.started) return Contradiction("a delta in front of `started`");
  if (state.finished) return Contradiction("a delta behind `finished`");
  if (delta.token_ids_size() == 0) {
    state.tail += delta.text();
    return false;
  }
  if (!state.tail.empty()) return Contradiction("tokens behind the end of the text");
  const size_t expected = static_cast<size_t>(request_.resume_token_ids_size()) + state.ids.size();
  if (delta.index() != expected) {
    return Contradiction(
        absl::StrCat("a delta begins at token ", delta.index(), ", expected is ", expected));
  }
  state.ids.insert(state.ids.end(), delta.token_ids().begin(), delta.token_ids().end());
  ++state.given;
  return true;
}

absl::Status CallProgress::AcceptFinished(int choice, std::vector<v1::GenerateResponse>* out) {
  ChoiceState& state = choices_[static_cast<size_t>(choice)];
  if (!state.started) return Contradiction("`finished` in front of `started`");
  if (state.finished) return Contradiction("`finished` twice");
  if (!state.tail.empty()) {
    v1::Delta* delta = out->emplace_back().mutable_delta();
    delta->set_choice(static_cast<uint32_t>(choice));
    delta->set_index(static_cast<uint32_t>(request_.resume_token_ids_size() +
                                           static_cast<int>(state.ids.size())));
    delta->set_text(state.tail);
  }
  state.finished = true;
  ++state.given;
  return absl::OkStatus();
}

absl::StatusOr<bool> CallProgress::AcceptPromptPart(int attempt, v1::PromptPart* part) {
  const int first_prompt = attempt == kAllChoices ? kAllChoices : attempt / choices_per_prompt_;
  ASSIGN_OR_RETURN(const int p,
                   Renumbered(first_prompt, part->prompt(), static_cast<int64_t>(prompts_.size())));
  part->set_prompt(static_cast<uint32_t>(p));
  if (part->token_ids_size() != part->logprobs_size()) {
    return Contradiction(absl::StrCat(part->token_ids_size(), " prompt tokens with ",
                                      part->logprobs_size(), " log-probabilities"));
  }
  PromptState& state = prompts_[static_cast<size_t>(p)];
  ChoiceState& first_choice = choices_[static_cast<size_t>(p * choices_per_prompt_)];
  if (part->token_ids_size() == 0) {
    if (std::exchange(state.echoed, true)) return false;
    ++first_choice.given;
    return true;
  }
  const uint64_t end = uint64_t{part->index()} + static_cast<uint64_t>(part->token_ids_size());
  if (state.next_index > 0) {
    if (part->index() > state.next_index) {
      return Contradiction(absl::StrCat("log-probabilities of the prompt go on at token ",
                                        part->index(), ", expected is ", state.next_index));
    }
    const int known =
        static_cast<int>(std::min<uint64_t>(end, state.next_index) - uint64_t{part->index()});
    part->mutable_token_ids()->ExtractSubrange(0, known, nullptr);
    part->mutable_logprobs()->DeleteSubrange(0, known);
    part->set_index(part->index() + static_cast<uint32_t>(known));
    if (part->token_ids_size() == 0) return false;
  }
  state.next_index = end;
  ++first_choice.given;
  return true;
}

}  // namespace fixpoint::client
