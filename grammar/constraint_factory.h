// Output that keeps to a JSON schema or a regular expression: what the server puts into
// Request::constraint.
//
// A grammar is compiled once (in the caller's thread: call it from a worker, not from the engine)
// and kept for the next request with the same text. Every limit is one of grammar/limits.h;
// errors are INVALID_ARGUMENT and name the place in the text, the limit and the value.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/token_constraint.h"
#include "grammar/token_trie.h"
#include "text/tokenizer.h"

namespace fixpoint {

class CompiledGrammar;

// One per model. Thread-safe; constraints may outlive it and the tokenizer.
class ConstraintFactory {
 public:
  // `eos_ids`: the tokens that end an answer, allowed where the text may end. Errors: none of them
  // in the vocabulary (a finished text could not go on), or no single byte that is a token.
  static absl::StatusOr<std::unique_ptr<ConstraintFactory>> Create(
      const Tokenizer& tokenizer, absl::Span<const int32_t> eos_ids);
  ~ConstraintFactory();

  // Values of the schema, as grammar/json_schema.h reads it.
  absl::StatusOr<std::shared_ptr<TokenConstraint>> JsonSchema(absl::string_view schema);
  // Texts that the whole expression matches (grammar/regex.h).
  absl::StatusOr<std::shared_ptr<TokenConstraint>> Regex(absl::string_view pattern);
  // Any JSON object.
  absl::StatusOr<std::shared_ptr<TokenConstraint>> JsonObject();

  // What kept grammars may take together, the states they may come to meet included (some 30 of
  // them).
  static constexpr size_t kMaxKeptBytes = 128 << 20;
  size_t kept() const;

 private:
  enum class Kind { kJsonSchema, kRegex, kJsonObject };
  using Key = std::pair<Kind, std::string>;
  using Kept = std::list<std::pair<Key, std::shared_ptr<CompiledGrammar>>>;

  ConstraintFactory(const Tokenizer& tokenizer, absl::Span<const int32_t> eos_ids);
  absl::StatusOr<std::shared_ptr<TokenConstraint>> Make(Kind kind, absl::string_view text);
  absl::StatusOr<std::shared_ptr<CompiledGrammar>> Compile(Kind kind, absl::string_view text) const;
  void Keep(Key key, std::shared_ptr<CompiledGrammar> grammar);

  const std::vector<int32_t> eos_ids_;
  const std::shared_ptr<const TokenTrie> trie_;

  mutable std::mutex mutex_;  // the rest
  Kept kept_;                 // last used first
  absl::flat_hash_map<Key, Kept::iterator> by_text_;
  size_t kept_bytes_ = 0;
};

}  // namespace fixpoint
