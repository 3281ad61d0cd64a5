#include "grammar/constraint_factory.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "grammar/compiled_grammar.h"
#include "grammar/json_rules.h"
#include "grammar/json_schema.h"
#include "grammar/regex.h"

namespace fixpoint {
namespace {

constexpr size_t kMaxVocabularyBytes = 256 << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<ConstraintFactory>> ConstraintFactory::Create(
    const Tokenizer& tokenizer, absl::Span<const int32_t> eos_ids) {
  if (eos_ids.empty()) {
    return absl::FailedPreconditionError(
        "the model has no end-of-sequence token: a constrained answer could not end");
  }
  size_t bytes = 0;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) bytes += tokenizer.TokenBytes(id).size();
  if (bytes > kMaxVocabularyBytes) {
    return absl::FailedPreconditionError(
        absl::StrCat("the vocabulary has ", bytes, " bytes, more than ", kMaxVocabularyBytes));
  }
  for (const int32_t id : eos_ids) {
    if (id < 0 || id >= tokenizer.vocab_size()) {
      return absl::FailedPreconditionError(absl::StrCat("the end-of-sequence token ", id,
                                                        " is not among the ",
                                                        tokenizer.vocab_size(), " tokens"));
    }
  }
  std::unique_ptr<ConstraintFactory> factory(new ConstraintFactory(tokenizer, eos_ids));
  if (factory->trie_->single_bytes().none()) {
    return absl::FailedPreconditionError(
        "no single byte is a token: a constrained answer could end in the middle");
  }
  return factory;
}

ConstraintFactory::ConstraintFactory(const Tokenizer& tokenizer, absl::Span<const int32_t> eos_ids)
    : eos_ids_(eos_ids.begin(), eos_ids.end()),
      trie_(std::make_shared<TokenTrie>(tokenizer, eos_ids)) {}

ConstraintFactory::~ConstraintFactory() = default;

absl::StatusOr<std::shared_ptr<TokenConstraint>> ConstraintFactory::JsonSchema(
    absl::string_view schema) {
  return Make(Kind::kJsonSchema, schema);
}

absl::StatusOr<std::shared_ptr<TokenConstraint>> ConstraintFactory::Regex(
    absl::string_view pattern) {
  return Make(Kind::kRegex, pattern);
}

absl::StatusOr<std::shared_ptr<TokenConstraint>> ConstraintFactory::JsonObject() {
  return Make(Kind::kJsonObject, "");
}

absl::StatusOr<std::shared_ptr<TokenConstraint>> ConstraintFactory::Make(Kind kind,
                                                                         absl::string_view text) {
  if (text.size() > kMaxGrammarBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the grammar has ", text.size(), " bytes, more than ", kMaxGrammarBytes));
  }
  Key key(kind, text);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = by_text_.find(key);
    if (found != by_text_.end()) {
      kept_.splice(kept_.begin(), kept_, found->second);
      return std::make_shared<GrammarConstraint>(kept_.front().second);
    }
  }
  ASSIGN_OR_RETURN(std::shared_ptr<CompiledGrammar> grammar, Compile(kind, text));
  Keep(std::move(key), grammar);
  return std::make_shared<GrammarConstraint>(std::move(grammar));
}

absl::StatusOr<std::shared_ptr<CompiledGrammar>> ConstraintFactory::Compile(
    Kind kind, absl::string_view text) const {
  Nfa nfa;
  int32_t root = 0;
  switch (kind) {
    case Kind::kJsonSchema: {
      ASSIGN_OR_RETURN(root, EmitJsonSchema(text, &nfa));
      break;
    }
    case Kind::kRegex: {
      ASSIGN_OR_RETURN(const fixpoint::Regex regex, ParseRegex(text));
      root = nfa.AddRule("the regular expression");
      const int32_t end =
          EmitRegex(regex, RegexMatch::kWhole, Spelling::kUtf8, nfa.rule(root).start, &nfa);
      nfa.Silent(end, nfa.rule(root).end);
      break;
    }
    case Kind::kJsonObject:
      root = JsonRules(&nfa).AnyObject();
      break;
  }
  ASSIGN_OR_RETURN(Automaton automaton, Automaton::Build(nfa, root, trie_->single_bytes()));
  return std::make_shared<CompiledGrammar>(std::move(automaton), trie_, eos_ids_);
}

// Two threads may have compiled the same text: the later one's is kept.
void ConstraintFactory::Keep(Key key, std::shared_ptr<CompiledGrammar> grammar) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto drop = [&](Kept::iterator entry) {
    kept_bytes_ -= entry->second->memory_bytes() + entry->first.second.size();
    by_text_.erase(entry->first);
    kept_.erase(entry);
  };
  const auto found = by_text_.find(key);
  if (found != by_text_.end()) drop(found->second);
  kept_bytes_ += grammar->memory_bytes() + key.second.size();
  kept_.emplace_front(std::move(key), std::move(grammar));
  by_text_.emplace(kept_.front().first, kept_.begin());
  while (kept_.size() > 1 && kept_bytes_ > kMaxKeptBytes) {
    drop(std::prev(kept_.end()));
  }
}

size_t ConstraintFactory::kept() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return kept_.size();
}

}  // namespace fixpoint
