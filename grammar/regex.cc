#include "grammar/regex.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"

namespace fixpoint {
namespace {

constexpr uint32_t kFirstPrintable = 0x20;

class Emitter {
 public:
  Emitter(const Regex& regex, Spelling spelling, Nfa* nfa)
      : regex_(regex), spelling_(spelling), nfa_(*nfa) {}

  // Nodes nest no deeper than groups do, three to a group.
  int32_t Emit(int32_t node_index, int32_t from) {
    const RegexNode& node = regex_.nodes[static_cast<size_t>(node_index)];
    switch (node.kind) {
      case RegexNode::Kind::kSet:
        return EmitSet(node.set, spelling_, from, &nfa_);
      case RegexNode::Kind::kConcatenation:
        for (const int32_t part : node.parts) from = Emit(part, from);
        return from;
      case RegexNode::Kind::kAlternatives: {
        const int32_t to = nfa_.AddState();
        for (const int32_t part : node.parts) nfa_.Silent(Emit(part, Fresh(from)), to);
        return to;
      }
      case RegexNode::Kind::kRepeat:
        return EmitRepeat(node, from);
    }
    return from;
  }

  int32_t AnyText(int32_t from) {
    const int32_t loop = Fresh(from);
    static const auto* all = new CodePointSet(CodePointSet().Complement());
    nfa_.Silent(EmitSet(*all, spelling_, loop, &nfa_), loop);
    return loop;
  }

  int32_t Fresh(int32_t from) {
    const int32_t state = nfa_.AddState();
    nfa_.Silent(from, state);
    return state;
  }

 private:
  // Each copy takes at least one edge, so a huge count of empty texts ends at the limit, too.
  int32_t EmitRepeat(const RegexNode& node, int32_t from) {
    const int32_t part = node.parts[0];
    from = Fresh(from);
    for (int32_t i = 0; i < node.min && !nfa_.full(); ++i) from = Fresh(Emit(part, from));
    if (node.max == kUnlimited) {
      const int32_t loop = Fresh(from);
      nfa_.Silent(Emit(part, loop), loop);
      return Fresh(loop);
    }
    const int32_t to = nfa_.AddState();
    for (int32_t i = node.min; i < node.max && !nfa_.full(); ++i) {
      nfa_.Silent(from, to);
      from = Fresh(Emit(part, from));
    }
    nfa_.Silent(from, to);
    return to;
  }

  const Regex& regex_;
  const Spelling spelling_;
  Nfa& nfa_;
};

// The escape that JSON writers use, empty when the code point stands for itself.
std::string JsonEscape(uint32_t code_point) {
  switch (code_point) {
    case '"':
      return "\\\"";
    case '\\':
      return "\\\\";
    case '\b':
      return "\\b";
    case '\f':
      return "\\f";
    case '\n':
      return "\\n";
    case '\r':
      return "\\r";
    case '\t':
      return "\\t";
    default:
      break;
  }
  if (code_point >= kFirstPrintable) return "";
  return absl::StrCat("\\u", absl::Hex(code_point, absl::kZeroPad4));
}

}  // namespace

int32_t EmitSet(const CodePointSet& set, Spelling spelling, int32_t from, Nfa* nfa) {
  if (spelling == Spelling::kUtf8) return nfa->Set(from, set);
  // What remains of each range between the escaped code points, then those one by one.
  std::vector<CodePointRange> plain;
  std::vector<uint32_t> escaped;
  for (const CodePointRange& range : set.ranges()) {
    uint32_t low = range.low;
    for (uint32_t c = range.low; c <= std::min<uint32_t>(range.high, '\\'); ++c) {
      if (JsonEscape(c).empty()) continue;
      if (c > low) plain.push_back({low, c - 1});
      escaped.push_back(c);
      low = c + 1;
    }
    if (low <= range.high) plain.push_back({low, range.high});
  }
  const int32_t to = nfa->Set(from, CodePointSet(plain));
  for (const uint32_t c : escaped) nfa->Silent(nfa->Literal(from, JsonEscape(c)), to);
  return to;
}

int32_t EmitRegex(const Regex& regex, RegexMatch match, Spelling spelling, int32_t from, Nfa* nfa) {
  Emitter emitter(regex, spelling, nfa);
  const int32_t to = nfa->AddState();
  for (const Regex::Branch& branch : regex.branches) {
    const bool search = match == RegexMatch::kSearch;
    int32_t at = emitter.Fresh(from);
    if (search && !branch.at_start) at = emitter.AnyText(at);
    at = emitter.Emit(branch.node, at);
    if (search && !branch.at_end) at = emitter.AnyText(at);
    nfa->Silent(at, to);
  }
  return to;
}

}  // namespace fixpoint
