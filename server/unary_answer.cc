#include "server/unary_answer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "server/wire_answer.h"

namespace fixpoint {
namespace {

constexpr size_t kIdBytes = 5;           // an id as varint, at most
constexpr size_t kFieldBytes = 6;        // tag and length around a message or text
constexpr size_t kFixedBytes = 1 << 10;  // identity, ends and the like of one choice

}  // namespace

UnaryAnswer::UnaryAnswer(const ParsedRequest& request, const Tokenizer* tokenizer,
                         v1::GenerateOnceResponse* response, size_t max_bytes)
    : tokenizer_(tokenizer), response_(response), max_bytes_(max_bytes) {
  const size_t choices = request.prompts.size() * static_cast<size_t>(request.n);
  for (size_t i = 1; i < choices; ++i) response_->add_more_choices();
  if (request.echo || request.prompt_logprobs >= 0) {
    for (size_t i = 0; i < request.prompts.size(); ++i) {
      response_->add_prompts()->set_prompt(static_cast<uint32_t>(i));
    }
  }
  bytes_ = choices * kFixedBytes;
}

absl::Status UnaryAnswer::Add(PromptPart part) {
  v1::PromptPart* to = response_->mutable_prompts(part.prompt);
  v1::PromptPart more;
  FillPromptPart(std::move(part), *tokenizer_, &more);
  RETURN_IF_ERROR(Grow(more.ByteSizeLong() + kFieldBytes));
  const bool is_first = to->token_ids().empty();
  const uint32_t index = to->index();
  to->MergeFrom(more);
  if (!is_first) to->set_index(index);
  return absl::OkStatus();
}

absl::Status UnaryAnswer::Add(int32_t choice, AnswerDelta delta) {
  if (choice == 0) return AddDelta(std::move(delta), response_);
  return AddDelta(std::move(delta), response_->mutable_more_choices(choice - 1));
}

template <typename To>
absl::Status UnaryAnswer::AddDelta(AnswerDelta delta, To* to) {
  RETURN_IF_ERROR(Grow(delta.text.size() + delta.token_ids.size() * kIdBytes));
  to->mutable_text()->append(delta.text);
  for (const int32_t id : delta.token_ids) to->add_token_ids(static_cast<uint32_t>(id));
  for (const PositionLogprobs& logprobs : delta.logprobs) {
    v1::Logprobs* added = to->add_logprobs();
    FillLogprobs(logprobs, *tokenizer_, added);
    RETURN_IF_ERROR(Grow(added->ByteSizeLong() + kFieldBytes));
  }
  return absl::OkStatus();
}

void UnaryAnswer::End(int32_t choice, const ChoiceEnd& end) {
  FillFinished(choice, end,
               choice == 0 ? response_->mutable_finished()
                           : response_->mutable_more_choices(choice - 1)->mutable_finished());
}

absl::Status UnaryAnswer::Grow(size_t bytes) {
  bytes_ += bytes;
  if (bytes_ <= max_bytes_) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat("the answer is larger than ", max_bytes_,
                                            " bytes: use Generate, which streams"));
}

}  // namespace fixpoint
