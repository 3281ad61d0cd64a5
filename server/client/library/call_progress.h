// What has been received of a call, and the requests that go on from there. Pure: no time, no wire.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fixpoint/v1/generation.pb.h"

namespace fixpoint::client {

// A call is made of attempts. The messages that Accept passes on, of all attempts together, are
// those of one undisturbed call: each token and each byte of text once, `started` and `finished`
// once a choice. Only how tokens are grouped into deltas may differ.
//
// Choices: a broken call with several of them goes on as one call for each that is not finished.
// Choice i of a prompt alone is the same request with the seed + i and n = 1 (generation.proto), so
// it can take the tokens received as resume_token_ids.
//
// Not thread-safe.
class CallProgress {
 public:
  // An attempt for all choices of the request, as it was given.
  static constexpr int kAllChoices = -1;

  // `expected_fingerprint`: the only one to take answers from; empty: that of the first answer.
  CallProgress(v1::GenerateRequest request, std::string expected_fingerprint);

  int num_choices() const { return static_cast<int>(choices_.size()); }
  // With kAllChoices: all of them.
  bool Finished(int choice) const;
  // Grows with everything new that was passed on about the choice (kAllChoices: any), but not with
  // `started`: a server that dies again and again behind it brings nothing.
  int64_t Given(int choice) const;
  // Tokens received of it, those of the request's own resume_token_ids not counted.
  int64_t TokensReceived(int choice) const;
  const std::string& fingerprint() const { return fingerprint_; }

  // What to ask next. kAllChoices only as long as Given(kAllChoices) is 0.
  v1::GenerateRequest Request(int choice) const;
  // Call it in front of the first message of each attempt.
  void BeginAttempt(int choice);

  // Takes a message of an attempt for `choice` (or kAllChoices) and appends what is to be passed
  // on: nothing, the message, perhaps shortened by what was there already, or two messages;
  // numbered as in the whole call. Text without tokens is the end of a choice's text: it is kept
  // until `finished` confirms it, since a new attempt would bring it again. FAILED_PRECONDITION:
  // the target has another fingerprint; ask another one. DATA_LOSS: the message contradicts earlier
  // ones or the contract. After an error nothing was appended.
  absl::Status Accept(int choice, v1::GenerateResponse message,
                      std::vector<v1::GenerateResponse>* out);

 private:
  struct ChoiceState {
    bool given_started = false;  // passed on
    bool started = false;        // seen in this attempt
    bool finished = false;
    std::vector<uint32_t> ids;
    std::string tail;  // of this attempt: text that came without tokens
    int64_t given = 0;
  };
  struct PromptState {
    bool echoed = false;
    uint64_t next_index = 0;  // of the log-probabilities; 0: none yet
  };

  absl::StatusOr<int> Renumbered(int attempt, uint32_t number, int64_t count) const;
  // True: pass it on.
  absl::StatusOr<bool> AcceptStarted(int choice, const v1::Started& started);
  absl::StatusOr<bool> AcceptDelta(int choice, const v1::Delta& delta);
  // Appends the end of the text.
  absl::Status AcceptFinished(int choice, std::vector<v1::GenerateResponse>* out);
  absl::StatusOr<bool> AcceptPromptPart(int attempt, v1::PromptPart* part);

  const v1::GenerateRequest request_;
  const int choices_per_prompt_;
  bool fingerprint_was_asked_for_;
  std::string fingerprint_;
  std::vector<ChoiceState> choices_;
  std::vector<PromptState> prompts_;
};

}  // namespace fixpoint::client
