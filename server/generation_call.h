// One generation call from parsing to its end, free of any wire protocol: the gRPC reactors (and
// HTTP later) derive from it and only write. It keeps the engine thread, the tokenizer and the wire
// apart:
//   any thread  --Start-->  intake pool: parse, tokenize, submit  --Signal-->  delivery pool: Step,
//   Step, ... until the end
// All functions of a call that write run in Step, and Step never runs twice at once for the same
// call. A call drives one engine stream for each of its choices.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/call_plan.h"
#include "server/choice.h"
#include "server/log.h"
#include "server/open_calls.h"
#include "server/serving_core.h"
#include "server/trace_context.h"
#include "server/validation.h"

namespace fixpoint {

// Who calls, for logs and metrics.
struct CallOrigin {
  const char* method = "";  // a literal
  std::string peer;
  std::optional<TraceContext> trace;
};

// Owned by a shared_ptr, which the derived class holds until the protocol is done with it.
class GenerationCall : public OutputWatch, public std::enable_shared_from_this<GenerationCall> {
 public:
  using Parser = std::function<absl::StatusOr<ParsedRequest>(const RequestLimits&)>;

  GenerationCall(ServingCore* core, CallOrigin origin);
  ~GenerationCall() override = default;

  // Call once. `parse` runs on an intake thread.
  void Start(Parser parse, absl::Time deadline);

  // Output can be taken again, or the engine has more. Thread-safe, quick.
  void Signal();
  // The caller left or the connection broke. Thread-safe, quick.
  void CallerLeft();
  void ReaderStuck() override;

 protected:
  // Each is called by Step only and only while ReadyForOutput() is true; whoever makes it true
  // again calls Signal. Order: Accepted; then for each choice, mixed with the others, Started,
  // Prompt..., Delta..., Finished. Finished with `last` ends the call. Failed can come instead of
  // anything and ends it too. An error of Prompt or Delta fails the call with it.
  virtual bool ReadyForOutput() const = 0;
  virtual void Accepted(const ParsedRequest& request) = 0;
  virtual void Started(int32_t choice, int32_t prompt_tokens, const AnswerStart& start) = 0;
  virtual absl::Status Prompt(PromptPart part) = 0;
  virtual absl::Status Delta(int32_t choice, AnswerDelta delta) = 0;
  virtual void Finished(int32_t choice, const ChoiceEnd& end, bool last) = 0;
  virtual void Failed(const absl::Status& status) = 0;
  // Breaks a message that the caller does not take: ReadyForOutput becomes true soon.
  virtual void BreakOff() = 0;

  // Set from Accepted on.
  const ServedModel& model() const { return *model_; }
  const std::string& request_id() const { return request_id_; }

 private:
  absl::Status Begin(const Parser& parse, absl::Time deadline);
  void RunSteps();
  void Step();
  bool WriteNext();
  void Write(int32_t index, ChoiceItem item);
  void EndChoice(int32_t index, const ChoiceEnd& end);
  void Fail(const absl::Status& status);
  void CloseAll();
  void Report(const absl::Status& status);
  absl::Status FailureOf(const AnswerEnd& end) const;
  absl::Status GoneStatus() const;

  ServingCore* const core_;
  const CallOrigin origin_;
  const std::string request_id_;
  const absl::Time start_;
  std::atomic<bool> caller_left_{false};
  std::atomic<bool> reader_stuck_{false};
  std::atomic<bool> begun_{false};  // set behind everything that Begin writes
  std::atomic<int> signals_{
      0};  // not yet seen by RunSteps; the job is queued or running while it is not 0

  // Written by Begin, then by Step only.
  std::shared_ptr<ServedModel> model_;
  absl::Status begin_status_;
  std::optional<ParsedRequest> request_;  // until Accepted
  std::vector<std::unique_ptr<Choice>> choices_;
  size_t next_choice_ = 0;  // whose turn it is
  size_t ended_choices_ = 0;
  bool broken_off_ = false;
  bool ended_ = false;
  absl::Time first_token_ = absl::InfiniteFuture();
  int64_t prompt_tokens_ = 0;      // of all prompts
  int64_t completion_tokens_ = 0;  // of all choices, as far as known
};

}  // namespace fixpoint
