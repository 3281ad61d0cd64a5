#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "engine/engine_loop.h"
#include "engine/engine_mailbox.h"
#include "engine/sampler.h"

namespace fixpoint {
namespace {

absl::Status CheckRange(absl::string_view field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", value, ", must be in [", low, ", ", high, "]"));
}

absl::Status CheckIds(absl::string_view field, const std::vector<int32_t>& ids,
                      int32_t vocab_size) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocab_size) continue;
    return CheckRange(absl::StrCat(field, "[", i, "]"), ids[i], 0, vocab_size - 1);
  }
  return absl::OkStatus();
}

absl::Status CheckSampling(const SamplingParams& sampling, int32_t vocab_size) {
  RETURN_IF_ERROR(CheckRange("top_k", sampling.top_k, 0, vocab_size));
  RETURN_IF_ERROR(CheckRange("top_p_q16", sampling.top_p_q16, 1, 65536));
  return CheckRange("min_p_q16", sampling.min_p_q16, 0, 65536);
}

absl::Status CheckAdjustment(const LogitAdjustment& adjust, int32_t vocab_size) {
  RETURN_IF_ERROR(CheckRange("number of logit biases", static_cast<int64_t>(adjust.bias_q16.size()),
                             0, kMaxLogitBiases));
  for (size_t i = 0; i < adjust.bias_q16.size(); ++i) {
    const auto [id, bias] = adjust.bias_q16[i];
    // Rising, so that no token has two.
    const int32_t lowest = i == 0 ? 0 : adjust.bias_q16[i - 1].first + 1;
    RETURN_IF_ERROR(
        CheckRange(absl::StrCat("token of logit bias ", i), id, lowest, vocab_size - 1));
    RETURN_IF_ERROR(CheckRange(absl::StrCat("logit bias of token ", id), bias, -kMaxLogitBiasQ16,
                               kMaxLogitBiasQ16));
  }
  RETURN_IF_ERROR(CheckRange("repetition_q16", adjust.repetition_q16, 655, 6553600));
  RETURN_IF_ERROR(CheckRange("presence_q16", adjust.presence_q16, -131072, 131072));
  return CheckRange("frequency_q16", adjust.frequency_q16, -131072, 131072);
}

// Beginning of the prompt that the model's prefix stands for.
size_t AbsorbedTokens(const std::vector<int32_t>& prefix, const std::vector<int32_t>& prompt) {
  const size_t most = std::min(prefix.size(), prompt.size());
  size_t count = 0;
  while (count < most && prefix[count] == prompt[count]) ++count;
  return count;
}

// The point on the steady clock that lies `wait` from now. kNever for what it cannot hold.
int64_t SteadyDeadlineNs(int64_t now_ns, absl::Duration wait) {
  if (wait >= absl::Hours(24 * 365 * 100)) return SequenceSpec::kNever;
  return now_ns + absl::ToInt64Nanoseconds(std::max(wait, absl::ZeroDuration()));
}

class EngineImpl final : public Engine {
 public:
  EngineImpl(Executor* executor, const EngineOptions& options, EngineObserver* observer)
      : options_(options),
        limits_(MakeLimits(executor->limits(), options)),
        mailbox_(std::make_shared<EngineMailbox>()),
        loop_(executor, options, observer, mailbox_),
        thread_([this] { loop_.Run(); }) {}

  ~EngineImpl() override { Drain(absl::ZeroDuration()); }

  EngineLimits limits() const override { return limits_; }

  absl::StatusOr<std::shared_ptr<Stream>> Submit(Request request) override {
    RETURN_IF_ERROR(CheckIds("prompt", request.prompt, limits_.vocab_size));
    const size_t absorbed = AbsorbedTokens(options_.prefix_token_ids, request.prompt);
    RETURN_IF_ERROR(Validate(request, absorbed));
    auto open = std::make_unique<OpenRequest>();
    open->absorbed = static_cast<int32_t>(absorbed);
    open->tokens = std::move(request.prompt);
    open->tokens.erase(open->tokens.begin(),
                       open->tokens.begin() + static_cast<std::ptrdiff_t>(absorbed));
    open->run_prompt = static_cast<int32_t>(open->tokens.size());
    open->resumed = static_cast<int32_t>(request.resume.size());
    open->lookup = PromptLookup(request.speculation);
    open->submitted_ns = SteadyNowNs();
    open->deadline_ns = SteadyDeadlineNs(open->submitted_ns, request.deadline - absl::Now());
    open->queue_deadline_ns = SteadyDeadlineNs(open->submitted_ns, options_.max_queue_time);
    open->request = std::move(request);
    RETURN_IF_ERROR(Resume(*open));
    // What a prompt's log-probabilities need has room beside the answer's tokens.
    const int32_t prompt_events = open->request.prompt_logprobs >= 0 ? open->run_prompt : 0;
    auto buffer = std::make_shared<StreamBuffer>(options_.stream_capacity_events + prompt_events,
                                                 [mailbox = mailbox_] { mailbox->Wake(); });
    open->stream = buffer;
    RETURN_IF_ERROR(Post(std::move(open)));
    return MakeStreamHandle(std::move(buffer));
  }

  EngineLoad load() const override {
    std::lock_guard<std::mutex> lock(mailbox_->mutex);
    return mailbox_->load;
  }

  bool healthy() const override {
    std::lock_guard<std::mutex> lock(mailbox_->mutex);
    return !mailbox_->lost;
  }

  void Drain(absl::Duration timeout) override {
    std::lock_guard<std::mutex> one_at_a_time(drain_mutex_);
    {
      std::unique_lock<std::mutex> lock(mailbox_->mutex);
      mailbox_->draining = true;
      const auto wait = absl::ToChronoNanoseconds(
          std::clamp(timeout, absl::ZeroDuration(), absl::Hours(24 * 365)));
      mailbox_->idle.wait_until(lock, std::chrono::steady_clock::now() + wait,
                                [&] { return mailbox_->open == 0; });
      mailbox_->stop = true;
    }
    mailbox_->work.notify_one();
    if (thread_.joinable()) thread_.join();
  }

 private:
  static EngineLimits MakeLimits(const ExecutorLimits& limits, const EngineOptions& options) {
    CHECK(options.logit_fraction_bits >= 0 && options.logit_fraction_bits <= kMaxLogitFractionBits)
        << options.logit_fraction_bits;
    CHECK_GE(options.max_queue_requests, 1);
    CHECK_GE(options.max_queue_tokens, 1);
    CHECK_GE(options.stream_capacity_events, 1);
    // The last generated token is never run, so it needs no place in the cache.
    const int64_t cache_tokens = int64_t{limits.num_blocks} * limits.block_tokens + 1;
    EngineLimits result;
    result.vocab_size = limits.vocab_size;
    result.block_tokens = limits.block_tokens;
    // As the scheduler brings it down: a step has room for prompt tokens beside all running ones.
    result.max_running = std::max(
        1, std::min({options.max_running, limits.max_step_logits, limits.max_step_tokens - 1}));
    result.max_queue_requests = options.max_queue_requests;
    result.max_queue_tokens = options.max_queue_tokens;
    result.max_context_tokens =
        static_cast<int32_t>(std::min<int64_t>(limits.max_sequence_tokens, cache_tokens));
    result.max_prompt_tokens = static_cast<int32_t>(
        std::min<int64_t>(result.max_context_tokens - 1, options.max_queue_tokens));
    return result;
  }

  absl::Status Validate(const Request& request, size_t absorbed) const {
    if (request.prompt.empty()) return absl::InvalidArgumentError("prompt is empty");
    const int64_t run_prompt = static_cast<int64_t>(request.prompt.size() - absorbed);
    if (run_prompt == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("prompt holds nothing behind the model's own prefix (", absorbed,
                       " tokens, such as BOS): at least one more token is needed"));
    }
    if (run_prompt > limits_.max_prompt_tokens) {
      return absl::InvalidArgumentError(absl::StrCat(
          "prompt has ", run_prompt, " tokens, the limit is ", limits_.max_prompt_tokens));
    }
    RETURN_IF_ERROR(
        CheckRange("max_tokens", request.max_tokens, 1, limits_.max_context_tokens - run_prompt));
    RETURN_IF_ERROR(CheckSampling(request.sampling, limits_.vocab_size));
    RETURN_IF_ERROR(CheckAdjustment(request.adjust, limits_.vocab_size));
    RETURN_IF_ERROR(CheckRange("number of resumed tokens",
                               static_cast<int64_t>(request.resume.size()), 0,
                               int64_t{request.max_tokens} - 1));
    RETURN_IF_ERROR(CheckIds("resume", request.resume, limits_.vocab_size));
    RETURN_IF_ERROR(CheckRange("min_tokens", request.min_tokens, 0, request.max_tokens));
    RETURN_IF_ERROR(CheckRange("prompt_logprobs", request.prompt_logprobs, -1, kMaxTopLogprobs));
    RETURN_IF_ERROR(CheckRange("bytes of cache_salt",
                               static_cast<int64_t>(request.cache_salt.size()), 0, kMaxSaltBytes));
    RETURN_IF_ERROR(CheckRange("number of stop_ids", static_cast<int64_t>(request.stop_ids.size()),
                               0, kMaxStopIds));
    RETURN_IF_ERROR(CheckIds("stop_ids", request.stop_ids, limits_.vocab_size));
    return CheckRange("top_logprobs", request.top_logprobs, -1, kMaxTopLogprobs);
  }

  // Appends what was generated before, and brings the rules for later tokens up to it.
  absl::Status Resume(OpenRequest& open) const {
    Request& request = open.request;
    if (request.adjust.counts_tokens()) {
      open.counts.AddPrompt(absl::MakeConstSpan(options_.prefix_token_ids)
                                .subspan(0, static_cast<size_t>(open.absorbed)));
      open.counts.AddPrompt(open.tokens);
      for (const int32_t id : request.resume) open.counts.AddAnswer(id);
    }
    if (request.constraint != nullptr) {
      for (size_t i = 0; i < request.resume.size(); ++i) {
        if (request.constraint->Accept(request.resume[i])) continue;
        return absl::InvalidArgumentError(absl::StrCat("resume[", i, "] is token ",
                                                       request.resume[i],
                                                       ", which the constraint does not allow"));
      }
    }
    open.tokens.insert(open.tokens.end(), request.resume.begin(), request.resume.end());
    std::vector<int32_t>().swap(request.resume);
    return absl::OkStatus();
  }

  // Hands the request to the engine thread if the queue has room.
  absl::Status Post(std::unique_ptr<OpenRequest> open) {
    {
      std::lock_guard<std::mutex> lock(mailbox_->mutex);
      EngineMailbox& m = *mailbox_;
      if (m.lost) return absl::UnavailableError("the device was lost");
      if (m.draining) return absl::UnavailableError("the engine is draining");
      if (m.load.waiting >= options_.max_queue_requests) {
        return absl::ResourceExhaustedError(absl::StrCat("the queue holds ", m.load.waiting,
                                                         " requests, the limit is ",
                                                         options_.max_queue_requests));
      }
      if (m.load.waiting_tokens + open->to_prefill() > options_.max_queue_tokens) {
        return absl::ResourceExhaustedError(
            absl::StrCat("the queue holds ", m.load.waiting_tokens, " prompt tokens, the limit is ",
                         options_.max_queue_tokens, ", the request has ", open->to_prefill()));
      }
      m.load.waiting += 1;
      m.load.waiting_tokens += open->to_prefill();
      m.open += 1;
      open->id = m.next_id++;
      m.inbox.push_back(std::move(open));
    }
    mailbox_->work.notify_one();
    return absl::OkStatus();
  }

  const EngineOptions options_;
  const EngineLimits limits_;
  const std::shared_ptr<EngineMailbox> mailbox_;
  EngineLoop loop_;  // used by thread_ only
  std::mutex drain_mutex_;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<Engine> Engine::Create(Executor* executor, const EngineOptions& options,
                                       EngineObserver* observer) {
  return std::make_unique<EngineImpl>(executor, options, observer);
}

}  // namespace fixpoint
