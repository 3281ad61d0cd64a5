// The engine thread: admits, plans, runs, samples and hands out events, step by step.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "engine/engine.h"
#include "engine/engine_mailbox.h"
#include "engine/executor.h"
#include "engine/scheduler.h"
#include "engine/token_chooser.h"

namespace fixpoint {

// Everything here belongs to the thread that calls Run; other threads reach it through the mailbox
// only.
class EngineLoop : private TokenSource {
 public:
  EngineLoop(Executor* executor, const EngineOptions& options, EngineObserver* observer,
             std::shared_ptr<EngineMailbox> mailbox);

  // Returns after mailbox.stop, when every request has its end.
  void Run();

 private:
  struct Ending {
    FinishReason reason = FinishReason::kStop;
    absl::Status error;
    int32_t stop_token_id = -1;
  };

  absl::Span<const int32_t> Tokens(SequenceId id) const override;
  absl::string_view Salt(SequenceId id) const override;

  bool WaitForWork();  // false: stop
  void TakeInbox();
  void EndCancelled();
  void EndExpired();

  void Step();
  // While a step runs, which neither changes nor is changed by it.
  void WorkBesideStep();
  // False if the request's reader is too slow: it has to end.
  bool Deliver(OpenRequest& request);
  bool ProposeDrafts();  // whether there are any
  void Plan();
  void PlanAhead();
  void NoteChanges(const StepPlan& plan);
  void BuildChunks();
  // The rows of a planned chunk: which, and what becomes of each.
  void AddRows(const PlannedChunk& planned, const OpenRequest& request);
  // What became of one chunk's rows.
  struct Outcome {
    const PlannedChunk* chunk;
    size_t row;  // its first
    OpenRequest* request;
    int32_t chosen = 0;  // tokens
    std::optional<Ending> ending;
  };
  // All chunks at once, each by one worker: touches the chunk's own request only.
  void ChooseTokens();
  void ChooseTokens(Outcome& outcome, TokenChooser& chooser);
  // Of the token behind so many tokens of a request, in the whole context.
  uint64_t PositionOf(size_t tokens) const { return options_.prefix_token_ids.size() + tokens; }
  const int32_t* Logits(size_t row) const {
    return logits_.data() + row * static_cast<size_t>(vocab_size_);
  }
  void Settle(Outcome& outcome);
  void ReportTokens(OpenRequest& request);

  void LoseDevice(const absl::Status& status);
  void End(OpenRequest& request, Ending ending);
  void EndAll(FinishReason reason, absl::string_view error);
  void PublishLoad(int32_t ended);

  Executor* const executor_;
  const EngineOptions options_;
  EngineObserver* const observer_;  // never null
  const std::shared_ptr<EngineMailbox> mailbox_;
  const int32_t vocab_size_;
  std::map<SequenceId, std::unique_ptr<OpenRequest>> open_;  // in order of arrival
  Scheduler scheduler_;                                      // reads open_
  std::vector<TokenChooser> choosers_;                       // of each worker
  bool lost_ = false;

  std::vector<std::unique_ptr<OpenRequest>> arrived_;
  bool look_for_cancelled_ = false;
  int64_t cache_queries_ = 0, cache_hits_ = 0;  // reported so far

  // The step behind the running one was planned while that runs, and nothing has happened since
  // that would change its plan.
  bool planned_ahead_ = false;
  StepPlan next_plan_;
  bool advanced_ = false;  // the scheduler knows of the running step as if it were done

  // Of the running step, kept for their memory.
  StepPlan plan_;
  std::vector<SequenceChunk> chunks_;
  std::vector<Outcome> outcomes_;
  std::vector<int32_t> rows_;       // logit indices of all chunks
  std::vector<RowChoice> choices_;  // of each row
  std::vector<ExpiredSequence> expired_;
  std::vector<int32_t> logits_;  // [max_step_logits][vocab_size], of rows without a choice
  std::vector<int32_t> chosen_;  // [max_step_logits], of rows with one
};

}  // namespace fixpoint
