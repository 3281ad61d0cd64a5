#include "server/served_model.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace fixpoint {
namespace {

// More bytes than this cannot be a prompt that fits, since no token stands for more than the
// longest one.
size_t PromptByteLimit(const Tokenizer& tokenizer, int32_t max_prompt_tokens) {
  size_t longest = 1;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    longest = std::max(longest, tokenizer.TokenBytes(id).size());
  }
  return std::min(kMaxPromptBytes, longest * static_cast<size_t>(max_prompt_tokens));
}

const char* FieldOf(ConstraintKind kind) {
  switch (kind) {
    case ConstraintKind::kJsonSchema:
      return "constraint.json_schema";
    case ConstraintKind::kRegex:
      return "constraint.regex";
    default:
      return "constraint";
  }
}

}  // namespace

std::string SystemFingerprint(const ModelIdentity& identity) {
  return absl::StrCat("fp-", identity.bundle_digest.substr(0, 16), "-n", identity.numerics_version);
}

ServedModel::ServedModel(ModelIdentity identity, std::unique_ptr<Tokenizer> tokenizer,
                         ChatRenderer chat, std::unique_ptr<Executor> executor,
                         std::unique_ptr<Engine> engine, ConstraintMaker constraints)
    : identity_(std::move(identity)),
      fingerprint_(SystemFingerprint(identity_)),
      tokenizer_(std::move(tokenizer)),
      chat_(std::move(chat)),
      constraints_(std::move(constraints)),
      executor_(std::move(executor)),
      engine_(std::move(engine)) {
  limits_.engine = engine_->limits();
  limits_.eos_ids = tokenizer_->spec().eos_ids;
  limits_.max_prompt_bytes = PromptByteLimit(*tokenizer_, limits_.engine.max_prompt_tokens);
}

absl::StatusOr<std::vector<int32_t>> ServedModel::EncodePrompt(const ParsedPrompt& prompt) const {
  std::vector<int32_t> ids;
  switch (prompt.kind) {
    case ParsedPrompt::Kind::kTokenIds:
      ids = prompt.token_ids;
      break;
    case ParsedPrompt::Kind::kText: {
      const TokenizerSpec& spec = tokenizer_->spec();
      if (spec.add_bos && spec.bos_id >= 0) ids.push_back(spec.bos_id);
      const std::vector<int32_t> text_ids =
          tokenizer_->Encode(prompt.text, /*parse_control_tokens=*/false);
      ids.insert(ids.end(), text_ids.begin(), text_ids.end());
      break;
    }
    case ParsedPrompt::Kind::kChat: {
      if (chat_ == nullptr) {
        return absl::FailedPreconditionError(
            absl::StrCat(prompt.field, ".chat: this model has no chat template; use text"));
      }
      ASSIGN_OR_RETURN(const std::vector<TextSegment> segments, chat_(prompt.chat));
      ids = tokenizer_->EncodeSegments(segments);
      break;
    }
  }
  RETURN_IF_ERROR(CheckPromptTokens(prompt.field, ids.size(), limits_));
  return ids;
}

absl::StatusOr<std::shared_ptr<TokenConstraint>> ServedModel::MakeConstraint(
    const ConstraintSpec& spec) const {
  if (spec.kind == ConstraintKind::kNone) return std::shared_ptr<TokenConstraint>();
  if (constraints_ == nullptr) {
    return absl::FailedPreconditionError("constraint: this server has no grammars");
  }
  absl::StatusOr<std::shared_ptr<TokenConstraint>> made = constraints_(spec);
  if (!made.ok()) return Annotate(made.status(), FieldOf(spec.kind));
  return made;
}

}  // namespace fixpoint
