#include "server/fake_engine/fake_engine.h"

#include <algorithm>
#include <deque>
#include <thread>
#include <utility>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "base/check.h"

namespace fixpoint {
namespace {

class FakeStream final : public Stream {
 public:
  bool TryNext(Event* event) override { return Next(event, absl::ZeroDuration()); }

  bool Next(Event* event, absl::Duration timeout) override {
    absl::MutexLock lock(&mutex_);
    const auto ready = [this] { return !events_.empty(); };
    if (!mutex_.AwaitWithTimeout(absl::Condition(&ready), timeout)) return false;
    *event = std::move(events_.front());
    events_.pop_front();
    return true;
  }

  void SetListener(std::function<void()> listener) override {
    absl::MutexLock lock(&listener_mutex_);
    listener_ = std::move(listener);
    listener_();
  }

  void ClearListener() override {
    absl::MutexLock lock(&listener_mutex_);
    listener_ = nullptr;
  }

  void Cancel() override { cancelled_ = true; }
  bool cancelled() const { return cancelled_; }

  void Add(Event event) {
    {
      absl::MutexLock lock(&mutex_);
      events_.push_back(std::move(event));
    }
    absl::MutexLock lock(&listener_mutex_);
    if (listener_ != nullptr) listener_();
  }

 private:
  absl::Mutex mutex_;
  std::deque<Event> events_ ABSL_GUARDED_BY(mutex_);
  absl::Mutex listener_mutex_;
  std::function<void()> listener_ ABSL_GUARDED_BY(listener_mutex_);
  std::atomic<bool> cancelled_{false};
};

Event EndEvent(const FakeEngineOptions& options, const Request& request, FinishReason reason,
               int32_t generated, int32_t stop_token_id = -1) {
  Event event;
  event.finished = true;
  event.reason = reason;
  event.stop_token_id = stop_token_id;
  event.prompt_tokens = static_cast<int32_t>(request.prompt.size());
  event.cached_tokens = options.cached_tokens;
  event.generated_tokens = generated;
  if (reason == FinishReason::kError) event.error = options.failure;
  return event;
}

// Of the prompt's token at `index`: probability e^-2, and the wanted number of others.
Event PromptEvent(const FakeEngineOptions& options, const Request& request, int32_t index) {
  Event event;
  event.of_prompt = true;
  event.token_id = request.prompt[static_cast<size_t>(index)];
  event.index = index;
  event.cached_tokens = options.cached_tokens;
  event.chosen = {event.token_id, -2 * 65536};
  for (int32_t i = 0; i < request.prompt_logprobs; ++i) event.top.push_back({i, -65536 * (i + 1)});
  return event;
}

Event TokenEvent(const FakeEngineOptions& options, const Request& request, int32_t id,
                 int32_t index) {
  Event event;
  event.cached_tokens = options.cached_tokens;
  event.token_id = id;
  event.index = index;
  if (request.top_logprobs >= 0) event.chosen = {id, -65536};
  for (int32_t i = 0; i < request.top_logprobs; ++i) event.top.push_back({i, -65536 * (i + 1)});
  return event;
}

// The end event, once it is due; the token loop of one request.
Event Generate(const FakeEngineOptions& options, const Request& request, FakeStream* stream,
               const std::atomic<bool>& stop) {
  const auto end = [&](FinishReason reason, int32_t generated, int32_t stop_token_id = -1) {
    return EndEvent(options, request, reason, generated, stop_token_id);
  };
  if (request.prompt_logprobs >= 0) {
    for (int32_t index = 1; index < static_cast<int32_t>(request.prompt.size()); ++index) {
      stream->Add(PromptEvent(options, request, index));
    }
  }
  for (auto index = static_cast<int32_t>(request.resume.size()); index < request.max_tokens;
       ++index) {
    if (options.time_per_token > absl::ZeroDuration()) absl::SleepFor(options.time_per_token);
    if (stream->cancelled() || stop) return end(FinishReason::kCancelled, index);
    if (absl::Now() >= request.deadline) return end(FinishReason::kDeadline, index);
    if (index == options.fail_at) return end(FinishReason::kError, index);
    const int32_t id = options.token(request, index);
    const bool stops = (id == kFakeEos && !request.ignore_eos) ||
                       std::count(request.stop_ids.begin(), request.stop_ids.end(), id) > 0;
    if (stops) return end(FinishReason::kStop, index + 1, id);
    stream->Add(TokenEvent(options, request, id, index));
  }
  return end(FinishReason::kLength, request.max_tokens);
}

}  // namespace

std::unique_ptr<Tokenizer> FakeTokenizer() {
  TokenizerSpec spec;
  spec.kind = TokenizerKind::kByteLevelBpe;
  spec.pre_tokenizer = PreTokenizer::kGpt2;
  for (int byte = 0; byte < 256; ++byte) spec.tokens.emplace_back(1, static_cast<char>(byte));
  spec.types.assign(256, TokenType::kNormal);
  for (const char* control : {"<bos>", "<eos>"}) {
    spec.added.push_back(
        {.id = static_cast<int32_t>(spec.tokens.size()), .content = control, .special = true});
    spec.tokens.emplace_back(control);
    spec.types.push_back(TokenType::kControl);
  }
  spec.add_bos = true;
  spec.bos_id = kFakeBos;
  spec.eos_ids = {kFakeEos};
  auto tokenizer = Tokenizer::Create(std::move(spec));
  CHECK(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

EngineLimits FakeEngine::limits() const {
  return {.max_prompt_tokens = options_.max_context_tokens - 1,
          .max_context_tokens = options_.max_context_tokens,
          .vocab_size = kFakeVocab,
          .block_tokens = 16,
          .max_running = 64,
          .max_queue_requests = 256,
          .max_queue_tokens = 4096};
}

absl::StatusOr<std::shared_ptr<Stream>> FakeEngine::Submit(Request request) {
  if (draining_) return absl::UnavailableError("draining");
  if (!options_.submit_error.ok()) return options_.submit_error;
  if (submitted_ >= options_.refuse_from) return absl::ResourceExhaustedError("queue: full");
  ++submitted_;
  {
    absl::MutexLock lock(&mutex_);
    requests_.push_back(request);
  }
  ++*running_;
  auto stream = std::make_shared<FakeStream>();
  std::thread([options = options_, request = std::move(request),
               weak = std::weak_ptr<FakeStream>(stream), stop = stop_,
               running = running_]() mutable {
    if (auto held = weak.lock()) held->Add(Generate(options, request, held.get(), *stop));
    --*running;
  }).detach();
  return std::shared_ptr<Stream>(stream);
}

std::vector<Request> FakeEngine::requests() const {
  absl::MutexLock lock(&mutex_);
  return requests_;
}

EngineLoad FakeEngine::load() const {
  return {.running = *running_,
          .waiting = 2,
          .waiting_tokens = 30,
          .free_blocks = 6,
          .total_blocks = 8};
}

void FakeEngine::Drain(absl::Duration timeout) {
  draining_ = true;
  const absl::Time until = absl::Now() + timeout;
  while (*running_ > 0 && absl::Now() < until) absl::SleepFor(absl::Milliseconds(1));
  *stop_ = true;
  while (*running_ > 0) absl::SleepFor(absl::Milliseconds(1));
}

}  // namespace fixpoint
