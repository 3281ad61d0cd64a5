// The engine thread: admits, plans, runs, samples and hands out events, step by step.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "engine/engine.h"
#include "engine/engine_mailbox.h"
#include "engine/executor.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"

namespace fixpoint {

// Everything here belongs to the thread that calls Run; other threads reach it through the mailbox
// only.
class EngineLoop {
 public:
  EngineLoop(Executor* executor, const EngineOptions& options, EngineObserver* observer,
             std::shared_ptr<EngineMailbox> mailbox);

  // Returns after mailbox.stop, when every request has its end.
  void Run();

 private:
  bool WaitForWork();  // false: stop
  void TakeInbox();
  void EndCancelled();
  void EndExpired();
  void Step();
  void BuildChunks();
  void TakeToken(OpenRequest& request, const PlannedChunk& chunk, const int32_t* logits);
  Event TokenEvent(const OpenRequest& request, int32_t token, const int32_t* logits) const;
  bool Stops(const OpenRequest& request, int32_t token) const;
  void ReportToken(OpenRequest& request);
  void MarkAdmitted();
  void LoseDevice(const absl::Status& status);
  void End(OpenRequest& request, FinishReason reason, absl::Status error, int32_t stop_token_id);
  void EndAll(FinishReason reason, absl::string_view error);
  void PublishLoad(int32_t ended);

  Executor* const executor_;
  const EngineOptions options_;
  EngineObserver* const observer_;  // never null
  const std::shared_ptr<EngineMailbox> mailbox_;
  const int32_t vocab_size_;
  Scheduler scheduler_;
  bool lost_ = false;

  std::map<SequenceId, std::unique_ptr<OpenRequest>> open_;  // in order of arrival
  std::vector<std::unique_ptr<OpenRequest>> arrived_;
  bool look_for_cancelled_ = false;

  // Of the running step, kept for their memory.
  StepPlan plan_;
  std::vector<SequenceChunk> chunks_;
  std::vector<int32_t> last_rows_;  // logit index of each chunk
  std::vector<ExpiredSequence> expired_;
  std::vector<int32_t> logits_;  // [max_step_logits][vocab_size]
  std::vector<uint32_t> weights_;
  std::vector<SampleCandidate> candidates_;
};

}  // namespace fixpoint
