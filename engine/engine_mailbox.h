// What the engine thread and callers share.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "engine/engine.h"
#include "engine/logit_rules.h"
#include "engine/prompt_lookup.h"
#include "engine/request.h"
#include "engine/scheduler.h"
#include "engine/stream.h"

namespace fixpoint {

// A request from Submit to its end. Owned by the mailbox, then by the engine thread.
struct OpenRequest {
  SequenceId id = 0;
  Request request;  // without its prompt and resumed tokens, which are in `tokens`
  // What is run: the prompt behind the absorbed tokens, then what was generated, then drafts while
  // a step runs.
  std::vector<int32_t> tokens;
  int32_t absorbed = 0;    // prompt tokens that the model's prefix stands for
  int32_t run_prompt = 0;  // prompt tokens in `tokens`
  int32_t resumed = 0;     // generated tokens that came with the request
  std::shared_ptr<StreamBuffer> stream;
  int64_t submitted_ns = 0;  // steady clock, like all times here
  int64_t deadline_ns = SequenceSpec::kNever;
  int64_t queue_deadline_ns = SequenceSpec::kNever;
  TokenCounts counts;  // only where adjust.counts_tokens()
  PromptLookup lookup{Speculation::kOff};

  // Engine thread only, from here.
  int32_t cached = 0;  // run prompt tokens that the prefix cache had
  int32_t drafts = 0;  // at the end of `tokens`
  std::vector<int32_t> proposal;
  int64_t last_token_ns = 0;
  // What the last step gave and the stream and the observer were not told yet.
  std::vector<Event> undelivered;
  int32_t unreported = 0;  // tokens
  bool overrun = false;    // the stream had no room: nothing more is delivered, the request ends

  int32_t generated() const { return static_cast<int32_t>(tokens.size()) - drafts - run_prompt; }
  int32_t prompt_tokens() const { return absorbed + run_prompt; }
  int32_t cached_tokens() const { return absorbed + cached; }
  int32_t to_prefill() const { return run_prompt + resumed; }  // as the queue counts
};

// Kept by streams too, so that a stream which outlives the engine can still be cancelled. All
// fields are guarded by mutex.
struct EngineMailbox {
  std::mutex mutex;
  std::condition_variable work;  // engine thread: inbox, wake or stop changed
  std::condition_variable idle;  // Drain: open became 0
  std::vector<std::unique_ptr<OpenRequest>> inbox;
  bool wake = false;      // some stream was cancelled
  bool stop = false;      // end everything that is open, then the thread
  bool draining = false;  // refuse new requests
  bool lost = false;      // the executor failed
  int32_t open = 0;       // requests without an end, inbox included
  SequenceId next_id = 1;
  EngineLoad load;  // waiting and waiting_tokens include the inbox

  void Wake() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      wake = true;
    }
    work.notify_one();
  }
};

// Nanoseconds of the steady clock: wall-clock jumps must not end requests.
int64_t SteadyNowNs();

}  // namespace fixpoint
