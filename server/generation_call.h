// One generation request from parsing to its end, free of any wire protocol: the gRPC reactors (and
// HTTP later) derive from it and only write. It keeps the engine thread, the tokenizer and the wire
// apart:
//   any thread  --Start-->  intake pool: parse, tokenize, submit  --Signal-->  delivery pool: Step,
//   Step, ... until the end
// All functions of a call that write run in Step, and Step never runs twice at once for the same
// call.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/answer.h"
#include "server/serving_core.h"
#include "server/validation.h"

namespace fixpoint {

// Owned by a shared_ptr, which the derived class holds until the protocol is done with it.
class GenerationCall : public std::enable_shared_from_this<GenerationCall> {
 public:
  using Parser = std::function<absl::StatusOr<ParsedRequest>(const RequestLimits&)>;

  // `method` and `peer` are for logs and metrics; `method` must be a literal.
  GenerationCall(ServingCore* core, const char* method, std::string peer);
  virtual ~GenerationCall() = default;

  // Call once. `parse` runs on an intake thread.
  void Start(Parser parse, absl::Time deadline);

  // Output can be taken again, or the engine has more. Thread-safe, quick.
  void Signal();
  // The caller left or the connection broke. Thread-safe, quick.
  void CallerLeft();

 protected:
  // Each is called by Step only, in this order: Started, Delta..., then one of Done and Failed, and
  // only while ReadyForOutput() is true. Whoever makes it true again calls Signal.
  virtual bool ReadyForOutput() const = 0;
  virtual void Started(int32_t prompt_tokens) = 0;
  virtual void Delta(AnswerDelta delta) = 0;
  virtual void Done(const AnswerEnd& end) = 0;
  virtual void Failed(const absl::Status& status) = 0;

  // Set from Started on.
  const ServedModel& model() const { return *model_; }
  const std::string& request_id() const { return request_id_; }
  const char* method() const { return method_; }

 private:
  absl::Status Begin(const Parser& parse, absl::Time deadline);
  void RunSteps();
  void Step();
  void End(const AnswerEnd& end);
  void Fail(const absl::Status& status);
  void Report(absl::StatusCode code);
  absl::Status FailureOf(const AnswerEnd& end) const;

  ServingCore* const core_;
  const char* const method_;
  const std::string peer_;
  const std::string request_id_;
  const absl::Time start_;
  std::atomic<bool> caller_left_{false};
  std::atomic<bool> begun_{false};  // set behind everything that Begin writes
  std::atomic<int> signals_{
      0};  // not yet seen by RunSteps; the job is queued or running while it is not 0

  // Written by Begin, then by Step only.
  std::shared_ptr<ServedModel> model_;
  absl::Status begin_status_;
  std::unique_ptr<Answer> answer_;
  bool started_ = false;
  bool ended_ = false;
  absl::Time first_token_ = absl::InfiniteFuture();
  int32_t prompt_tokens_ = 0;
  int32_t delta_tokens_ = 0;
};

}  // namespace fixpoint
