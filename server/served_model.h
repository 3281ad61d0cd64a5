// A loaded model as the handlers see it: text in, engine, identity and limits.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/executor.h"
#include "engine/token_constraint.h"
#include "server/constraint_spec.h"
#include "server/validation.h"
#include "text/text_segment.h"
#include "text/tokenizer.h"

namespace fixpoint {

// A request message holds at most this much (gRPC's own default), so prompts stay below it.
inline constexpr int kMaxMessageBytes = 4 << 20;
inline constexpr size_t kMaxPromptBytes = 3 << 20;

// What identifies the model to callers and in metrics.
struct ModelIdentity {
  std::string name;           // bundle file name without folder and extension
  std::string bundle_digest;  // hex SHA-256
  uint32_t numerics_version = 0;
  std::string device;  // "cpu", "cuda:0", "cuda:0-3"
};

// "fp-<16 digits of the digest>-n<numerics version>": equal fingerprints promise equal answers.
std::string SystemFingerprint(const ModelIdentity& identity);

// Renders messages with the model's chat template. INVALID_ARGUMENT when the template refuses them
// or a budget is used up.
using ChatRenderer = std::function<absl::StatusOr<std::vector<TextSegment>>(const ParsedChat&)>;

// Compiles a constraint for one answer. INVALID_ARGUMENT when the text cannot be used. Thread-safe;
// may take as long as a grammar's limits allow. Never asked for ConstraintKind::kNone.
using ConstraintMaker =
    std::function<absl::StatusOr<std::shared_ptr<TokenConstraint>>(const ConstraintSpec&)>;

// Immutable apart from the engine's own state; thread-safe.
class ServedModel {
 public:
  // `chat` may be empty: the model has no template. `executor` may be null when the engine does not
  // need one (tests). `constraints` may be empty: no grammars.
  ServedModel(ModelIdentity identity, std::unique_ptr<Tokenizer> tokenizer, ChatRenderer chat,
              std::unique_ptr<Executor> executor, std::unique_ptr<Engine> engine,
              ConstraintMaker constraints = nullptr);

  // The prompt's token ids, at least one and within the context. Raw text gets the
  // begin-of-sequence token where the tokenizer asks for it; chat templates write their own. Never
  // reads control tokens out of a caller's text. May take long (a megabyte of text): not for the
  // engine thread. INVALID_ARGUMENT as in validation.h; FAILED_PRECONDITION: chat without a
  // template.
  absl::StatusOr<std::vector<int32_t>> EncodePrompt(const ParsedPrompt& prompt) const;

  // Null for ConstraintKind::kNone. FAILED_PRECONDITION without a maker; else its errors, naming
  // the field.
  absl::StatusOr<std::shared_ptr<TokenConstraint>> MakeConstraint(const ConstraintSpec& spec) const;

  const ModelIdentity& identity() const { return identity_; }
  const std::string& fingerprint() const { return fingerprint_; }
  const RequestLimits& limits() const { return limits_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  bool has_chat_template() const { return chat_ != nullptr; }
  bool has_constraints() const { return constraints_ != nullptr; }
  Engine& engine() const { return *engine_; }

 private:
  const ModelIdentity identity_;
  const std::string fingerprint_;
  const std::unique_ptr<Tokenizer> tokenizer_;
  const ChatRenderer chat_;
  const ConstraintMaker constraints_;
  const std::unique_ptr<Executor> executor_;  // outlives the engine: declared before it
  const std::unique_ptr<Engine> engine_;
  RequestLimits limits_;
};

}  // namespace fixpoint
