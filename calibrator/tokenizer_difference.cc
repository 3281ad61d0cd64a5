#include "calibrator/tokenizer_difference.h"

#include <cstddef>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "base/json_writer.h"

namespace fixpoint {
namespace {

std::string Values(const char* what, int64_t a, int64_t b) {
  return absl::StrCat(what, " ", a, " and ", b);
}

bool Same(const TokenizerSpec::Merge& a, const TokenizerSpec::Merge& b) {
  return a.left == b.left && a.right == b.right && a.joined == b.joined;
}

bool Same(const AddedToken& a, const AddedToken& b) {
  const auto fields = [](const AddedToken& t) {
    return std::tie(t.id, t.content, t.special, t.single_word, t.lstrip, t.rstrip, t.normalized);
  };
  return fields(a) == fields(b);
}

bool Same(int32_t a, int32_t b) { return a == b; }

// The first place where two lists differ, or nothing.
template <typename T>
std::string ListDifference(const char* what, const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size()) {
    return absl::StrCat(a.size(), " and ", b.size(), " ", what, "s");
  }
  for (size_t i = 0; i < a.size(); ++i) {
    if (!Same(a[i], b[i])) return absl::StrCat(what, " ", i, " differs");
  }
  return "";
}

}  // namespace

std::string TokenizerDifference(const TokenizerSpec& a, const TokenizerSpec& b) {
  if (a.kind != b.kind)
    return Values("kind", static_cast<int64_t>(a.kind), static_cast<int64_t>(b.kind));
  if (a.tokens.size() != b.tokens.size())
    return absl::StrCat(a.tokens.size(), " and ", b.tokens.size(), " tokens");
  for (size_t i = 0; i < a.tokens.size(); ++i) {
    if (a.tokens[i] != b.tokens[i]) {
      return absl::StrCat("token ", i, " is ", JsonQuote(a.tokens[i]), " and ",
                          JsonQuote(b.tokens[i]));
    }
    if (a.types[i] != b.types[i]) return absl::StrCat("token ", i, " is of another type");
  }
  if (a.pre_tokenizer != b.pre_tokenizer) {
    return Values("pre-tokenizer", static_cast<int64_t>(a.pre_tokenizer),
                  static_cast<int64_t>(b.pre_tokenizer));
  }
  if (a.normalize_nfc != b.normalize_nfc) return "one normalizes text and one does not";
  if (a.ignore_merges != b.ignore_merges)
    return "one takes whole words from the vocabulary and one does not";
  if (a.add_space_prefix != b.add_space_prefix) return "one adds a space in front and one does not";
  if (a.unknown_id != b.unknown_id) return Values("unknown token", a.unknown_id, b.unknown_id);
  for (const std::string& difference :
       {ListDifference("merge", a.merges, b.merges), ListDifference("rank", a.ranks, b.ranks),
        ListDifference("added token", a.added, b.added)}) {
    if (!difference.empty()) return difference;
  }
  return "";
}

}  // namespace fixpoint
