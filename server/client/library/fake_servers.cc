#include "server/client/library/fake_servers.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <utility>

#include "absl/strings/str_cat.h"

namespace fixpoint::client {
namespace {

uint64_t Mix(uint64_t x) {
  x ^= x >> 31;
  x *= 0x9e3779b97f4a7c15;
  x ^= x >> 29;
  return x * 0xbf58476d1ce4e5b9;
}

absl::Status Refused(const std::string& why) { return absl::InvalidArgumentError(why); }

absl::Status CheckContinuation(const v1::GenerateRequest& request) {
  if (request.resume_token_ids_size() == 0) return absl::OkStatus();
  if (request.n() > 1 || request.more_prompts_size() > 0) {
    return Refused("resume_token_ids: with one choice only");
  }
  if (request.output().has_prompt_logprobs()) return Refused("resume with prompt_logprobs");
  const FakeAnswer answer = TrueAnswer(request.prompt().text(), request.sampling().seed(),
                                       request.stopping().max_tokens());
  const auto& ids = request.resume_token_ids();
  if (static_cast<size_t>(ids.size()) > answer.ids.size() ||
      !std::equal(ids.begin(), ids.end(), answer.ids.begin())) {
    return Refused("resume_token_ids are not what this request gave");
  }
  return absl::OkStatus();
}

v1::Logprobs LogprobsOf(uint32_t id) {
  v1::Logprobs logprobs;
  logprobs.mutable_chosen()->set_token_id(id);
  return logprobs;
}

// The messages of one choice, tokens grouped at random.
std::deque<v1::GenerateResponse> ChoiceMessages(const FakeAnswer& answer, uint32_t choice,
                                                size_t resumed, const std::string& fingerprint,
                                                std::mt19937_64* random) {
  std::deque<v1::GenerateResponse> out;
  out.emplace_back().mutable_started()->set_choice(choice);
  out.back().mutable_started()->set_system_fingerprint(fingerprint);
  for (size_t i = resumed; i < answer.ids.size();) {
    v1::Delta* delta = out.emplace_back().mutable_delta();
    delta->set_choice(choice);
    delta->set_index(static_cast<uint32_t>(i));
    for (uint64_t group = 1 + (*random)() % 3; group > 0 && i < answer.ids.size(); --group, ++i) {
      delta->add_token_ids(answer.ids[i]);
      *delta->add_logprobs() = LogprobsOf(answer.ids[i]);
      delta->mutable_text()->append(answer.texts[i]);
    }
  }
  if (!answer.tail.empty()) {
    v1::Delta* delta = out.emplace_back().mutable_delta();
    delta->set_choice(choice);
    delta->set_index(static_cast<uint32_t>(answer.ids.size()));
    delta->set_text(answer.tail);
  }
  *out.emplace_back().mutable_finished() = answer.finished;
  out.back().mutable_finished()->set_choice(choice);
  return out;
}

// Behind `started`: the text, then log-probabilities in parts of random size.
void AddPromptParts(const v1::GenerateRequest& request, const std::string& text, uint32_t prompt,
                    std::deque<v1::GenerateResponse>* out, std::mt19937_64* random) {
  std::vector<v1::GenerateResponse> parts;
  if (request.output().echo() && request.resume_token_ids_size() == 0) {
    v1::PromptPart* part = parts.emplace_back().mutable_prompt_part();
    part->set_prompt(prompt);
    part->set_text(text);
  }
  for (size_t i = 1; request.output().has_prompt_logprobs() && i < text.size();) {
    v1::PromptPart* part = parts.emplace_back().mutable_prompt_part();
    part->set_prompt(prompt);
    part->set_index(static_cast<uint32_t>(i));
    for (uint64_t group = 1 + (*random)() % 3; group > 0 && i < text.size(); --group, ++i) {
      part->add_token_ids(static_cast<uint8_t>(text[i]));
      *part->add_logprobs() = LogprobsOf(static_cast<uint8_t>(text[i]));
    }
  }
  out->insert(out->begin() + 1, parts.begin(), parts.end());
}

class FakeCall final : public StreamCall {
 public:
  FakeCall(std::vector<v1::GenerateResponse> messages, StreamEnd end, bool stalls,
           absl::Time deadline, FakeClock* clock)
      : messages_(std::move(messages)),
        end_(std::move(end)),
        stalls_(stalls),
        deadline_(deadline),
        clock_(clock) {}

  Read Next(absl::Time until, v1::GenerateResponse* message) override {
    clock_->Advance(absl::Milliseconds(1));
    if (cancelled_) {
      end_ = {absl::CancelledError("cancelled")};
      return Read::kEnd;
    }
    if (clock_->Now() >= deadline_) {
      end_ = {absl::DeadlineExceededError("deadline")};
      return Read::kEnd;
    }
    if (next_ < messages_.size()) {
      *message = messages_[next_++];
      return Read::kMessage;
    }
    if (!stalls_) return Read::kEnd;
    clock_->WaitUntil(std::min(until, deadline_), Cancellation());
    if (until <= deadline_) return Read::kTimeout;
    end_ = {absl::DeadlineExceededError("deadline")};
    return Read::kEnd;
  }
  const StreamEnd& end() const override { return end_; }
  void Cancel() override { cancelled_ = true; }

 private:
  const std::vector<v1::GenerateResponse> messages_;
  size_t next_ = 0;
  StreamEnd end_;
  const bool stalls_;
  const absl::Time deadline_;
  FakeClock* const clock_;
  std::atomic<bool> cancelled_{false};
};

}  // namespace

absl::Time FakeClock::Now() {
  absl::MutexLock lock(&mutex_);
  return now_;
}

void FakeClock::WaitUntil(absl::Time time, const Cancellation& cancellation) {
  if (cancellation.cancelled()) return;
  absl::MutexLock lock(&mutex_);
  now_ = std::max(now_, time);
}

void FakeClock::Advance(absl::Duration duration) {
  absl::MutexLock lock(&mutex_);
  now_ += duration;
}

// Every fourth id or so has no text of its own yet: it comes with the next one, or at the end.
FakeAnswer TrueAnswer(const std::string& prompt, uint64_t seed, uint32_t max_tokens) {
  FakeAnswer answer;
  uint64_t state = Mix(seed + 1);
  for (const char c : prompt) state = Mix(state ^ static_cast<uint8_t>(c));
  const bool stops = state % 2 == 0;
  const size_t length = stops ? state % (max_tokens + 1) : max_tokens;
  std::string held;
  for (size_t i = 0; i < length; ++i) {
    state = Mix(state + i);
    answer.ids.push_back(static_cast<uint32_t>(state % 1000));
    held += absl::StrCat("<", answer.ids.back(), ">");
    const bool hold = state % 4 == 3;
    answer.texts.push_back(hold ? "" : std::exchange(held, ""));
  }
  answer.tail = held;
  answer.finished.set_reason(stops ? v1::FINISH_REASON_STOP : v1::FINISH_REASON_LENGTH);
  answer.finished.mutable_usage()->set_completion_tokens(static_cast<uint32_t>(length));
  answer.finished.set_seed(seed);
  return answer;
}

FakeTransport::FakeTransport(int num_targets, FakeClock* clock, uint64_t seed,
                             std::function<Fault(int, int)> fault)
    : clock_(clock), fault_(std::move(fault)), random_(seed) {
  for (int t = 0; t < num_targets; ++t) names_.push_back(absl::StrCat("host", t, ":1"));
}

std::vector<v1::GenerateResponse> FakeTransport::Messages(const v1::GenerateRequest& request,
                                                          const std::string& fingerprint) {
  std::vector<v1::Prompt> prompts = {request.prompt()};
  prompts.insert(prompts.end(), request.more_prompts().begin(), request.more_prompts().end());
  const uint32_t n = request.has_n() ? request.n() : 1;
  std::vector<std::deque<v1::GenerateResponse>> choices;
  for (uint32_t p = 0; p < prompts.size(); ++p) {
    for (uint32_t i = 0; i < n; ++i) {
      const FakeAnswer answer = TrueAnswer(prompts[p].text(), request.sampling().seed() + i,
                                           request.stopping().max_tokens());
      choices.push_back(ChoiceMessages(answer, p * n + i,
                                       static_cast<size_t>(request.resume_token_ids_size()),
                                       fingerprint, &random_));
      if (i == 0) AddPromptParts(request, prompts[p].text(), p, &choices.back(), &random_);
    }
  }
  std::vector<v1::GenerateResponse> mixed;
  while (!choices.empty()) {
    const size_t c = random_() % choices.size();
    mixed.push_back(std::move(choices[c].front()));
    choices[c].pop_front();
    if (choices[c].empty()) choices.erase(choices.begin() + static_cast<int64_t>(c));
  }
  return mixed;
}

std::unique_ptr<StreamCall> FakeTransport::Start(int target, const v1::GenerateRequest& request,
                                                 absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  const Fault fault = fault_(target, static_cast<int>(attempts_.size()));
  attempts_.push_back({target, request, clock_->Now()});
  if (const absl::Status status = CheckContinuation(request); !status.ok()) {
    return std::make_unique<FakeCall>(std::vector<v1::GenerateResponse>(), StreamEnd{status}, false,
                                      deadline, clock_);
  }
  std::vector<v1::GenerateResponse> messages = Messages(request, fault.fingerprint);
  const bool cut = static_cast<size_t>(fault.after_messages) < messages.size();
  if (cut) messages.resize(static_cast<size_t>(fault.after_messages));
  if (cut && fault.flushes && !messages.empty() && messages.back().has_delta()) {
    v1::Delta delta = messages.back().delta();
    delta.clear_token_ids();
    delta.clear_logprobs();
    delta.set_text("?");
    *messages.emplace_back().mutable_delta() = delta;
  }
  if (fault.spoil)
    std::for_each(messages.begin(), messages.end(), [&](auto& m) { fault.spoil(&m); });
  return std::make_unique<FakeCall>(std::move(messages),
                                    cut ? fault.end.value_or(StreamEnd()) : StreamEnd(),
                                    cut && !fault.end.has_value(), deadline, clock_);
}

std::vector<Attempt> FakeTransport::attempts() const {
  absl::MutexLock lock(&mutex_);
  return attempts_;
}

}  // namespace fixpoint::client
