#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/status_macros.h"
#include "grammar/regex.h"
#include "text/utf8.h"

namespace fixpoint {
namespace {

constexpr int32_t kLargestCount = 1000000;  // beyond every limit on states

const std::vector<CodePointRange>& Digit() {
  static const auto* ranges = new std::vector<CodePointRange>{{'0', '9'}};
  return *ranges;
}
const std::vector<CodePointRange>& Word() {
  static const auto* ranges =
      new std::vector<CodePointRange>{{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
  return *ranges;
}
const std::vector<CodePointRange>& Space() {
  static const auto* ranges = new std::vector<CodePointRange>{
      {'\t', '\r'},     {' ', ' '},       {0xa0, 0xa0},     {0x1680, 0x1680}, {0x2000, 0x200a},
      {0x2028, 0x2029}, {0x202f, 0x202f}, {0x205f, 0x205f}, {0x3000, 0x3000}, {0xfeff, 0xfeff}};
  return *ranges;
}
const std::vector<CodePointRange>& LineEnd() {
  static const auto* ranges =
      new std::vector<CodePointRange>{{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};
  return *ranges;
}

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

class Parser {
 public:
  explicit Parser(absl::string_view pattern) : text_(pattern) {}

  absl::StatusOr<Regex> Parse() {
    do {
      Regex::Branch branch;
      branch.at_start = Take('^');
      ASSIGN_OR_RETURN(branch.node, ParseSequence(0));
      branch.at_end = Take('$');
      regex_.branches.push_back(branch);
      if (position_ < text_.size() && text_[position_] != '|') {
        if (text_[position_] == ')') return Error("')' closes no group");
        return Error("'$' is supported at the end of the expression only");
      }
    } while (Take('|'));
    return std::move(regex_);
  }

 private:
  bool Take(char c) {
    if (position_ >= text_.size() || text_[position_] != c) return false;
    ++position_;
    return true;
  }
  bool Ahead(absl::string_view what) const {
    return absl::StartsWith(text_.substr(position_), what);
  }
  bool AtEnd() const { return position_ >= text_.size(); }

  absl::Status ErrorAt(size_t offset, absl::string_view what) const {
    return absl::InvalidArgumentError(
        absl::StrCat("regular expression, offset ", offset, ": ", what));
  }
  absl::Status Error(absl::string_view what) const { return ErrorAt(position_, what); }

  int32_t AddNode(RegexNode node) {
    regex_.nodes.push_back(std::move(node));
    return static_cast<int32_t>(regex_.nodes.size()) - 1;
  }
  int32_t AddSet(CodePointSet set) {
    return AddNode({.kind = RegexNode::Kind::kSet, .set = std::move(set)});
  }

  // Until '|', ')', '$' or the end.
  absl::StatusOr<int32_t> ParseSequence(int depth) {
    RegexNode node;
    while (!AtEnd() && text_[position_] != '|' && text_[position_] != ')' &&
           text_[position_] != '$') {
      ASSIGN_OR_RETURN(int32_t part, ParseAtom(depth));
      ASSIGN_OR_RETURN(part, ParseQuantifiers(part));
      node.parts.push_back(part);
    }
    return node.parts.size() == 1 ? node.parts[0] : AddNode(std::move(node));
  }

  absl::StatusOr<int32_t> ParseAtom(int depth) {
    switch (text_[position_]) {
      case '(':
        return ParseGroup(depth + 1);
      case '[':
        return ParseClass();
      case '\\':
        return ParseEscape();
      case '.':
        ++position_;
        return AddSet(CodePointSet(LineEnd()).Complement());
      case '^':
        return Error("'^' is supported at the start of the expression only");
      case '*':
      case '+':
      case '?':
        return Error(absl::StrCat("'", text_.substr(position_, 1), "' repeats nothing"));
      case '{': {
        int32_t min, max;
        if (ReadCounts(&min, &max)) return Error("a repetition of nothing");
        break;
      }
      default:
        break;
    }
    const uint32_t value = TakeCodePoint();
    return AddSet(CodePointSet({{value, value}}));
  }

  uint32_t TakeCodePoint() {
    const CodePoint point = ReadCodePoint(text_, position_);
    position_ += point.length;
    return point.value;
  }

  absl::StatusOr<int32_t> ParseGroup(int depth) {
    if (depth > kMaxGroupDepth) {
      return Error(absl::StrCat("groups nest deeper than ", kMaxGroupDepth));
    }
    const size_t start = position_++;
    if (Ahead("?=") || Ahead("?!") || Ahead("?<=") || Ahead("?<!")) {
      return ErrorAt(start, "look-around is not supported: the language would not be regular");
    }
    if (Ahead("?:")) {
      position_ += 2;
    } else if (Ahead("?<") || Ahead("?P<")) {
      const size_t end = text_.find('>', position_);
      if (end == absl::string_view::npos) return ErrorAt(start, "the group's name has no end");
      position_ = end + 1;
    } else if (Ahead("?")) {
      return ErrorAt(start, "flags and this kind of group are not supported");
    }
    RegexNode node;
    node.kind = RegexNode::Kind::kAlternatives;
    do {
      ASSIGN_OR_RETURN(const int32_t part, ParseSequence(depth));
      node.parts.push_back(part);
      if (Ahead("$")) return Error("'$' is supported at the end of the expression only");
    } while (Take('|'));
    if (!Take(')')) return ErrorAt(start, "the group is not closed");
    return node.parts.size() == 1 ? node.parts[0] : AddNode(std::move(node));
  }

  // {m}, {m,} or {m,n} at the position; a brace that is none of them is a literal.
  bool ReadCounts(int32_t* min, int32_t* max) {
    size_t at = position_ + 1;
    const auto number = [&](int32_t* value) {
      const size_t first = at;
      *value = 0;
      for (; at < text_.size() && IsDigit(text_[at]); ++at) {
        *value = std::min(*value * 10 + (text_[at] - '0'), kLargestCount);
      }
      return at > first;
    };
    if (!number(min)) return false;
    *max = *min;
    if (at < text_.size() && text_[at] == ',') {
      ++at;
      if (!number(max)) *max = kUnlimited;
    }
    if (at >= text_.size() || text_[at] != '}') return false;
    counts_end_ = at + 1;
    return true;
  }

  absl::StatusOr<int32_t> ParseQuantifiers(int32_t part) {
    const size_t start = position_;
    RegexNode node;
    node.kind = RegexNode::Kind::kRepeat;
    node.parts = {part};
    node.max = kUnlimited;
    if (Take('+')) {
      node.min = 1;
    } else if (Take('?')) {
      node.max = 1;
    } else if (Ahead("{") && ReadCounts(&node.min, &node.max)) {
      position_ = counts_end_;
    } else if (!Take('*')) {
      return part;
    }
    if (node.max != kUnlimited && node.min > node.max) {
      return ErrorAt(start, "the repetition's counts are the wrong way round");
    }
    Take('?');  // lazy: the same texts
    if (Ahead("+")) return Error("possessive quantifiers are not supported");
    int32_t min, max;
    if (Ahead("*") || Ahead("?") || (Ahead("{") && ReadCounts(&min, &max))) {
      return Error("a repetition of a repetition needs a group");
    }
    return AddNode(std::move(node));
  }

  absl::StatusOr<int32_t> ParseEscape() {
    std::vector<CodePointRange> ranges;
    RETURN_IF_ERROR(ReadEscape(false, &ranges));
    return AddSet(CodePointSet(ranges));
  }

  absl::StatusOr<uint32_t> ReadHex(size_t start, size_t digits) {
    uint32_t value = 0;
    for (size_t i = 0; i < digits; ++i, ++position_) {
      const char c = AtEnd() ? ' ' : text_[position_];
      if (!absl::ascii_isxdigit(static_cast<unsigned char>(c))) {
        return ErrorAt(start, "hexadecimal digits expected");
      }
      value = value * 16 + static_cast<uint32_t>(IsDigit(c) ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    return value;
  }

  absl::StatusOr<uint32_t> ReadUnicodeEscape(size_t start) {
    uint32_t value;
    if (Take('{')) {
      const size_t end = text_.find('}', position_);
      if (end == absl::string_view::npos || end == position_ || end - position_ > 6) {
        return ErrorAt(start, "\\u{...} needs one to six hexadecimal digits");
      }
      ASSIGN_OR_RETURN(value, ReadHex(start, end - position_));
      ++position_;
    } else {
      ASSIGN_OR_RETURN(value, ReadHex(start, 4));
      if (value >= 0xd800 && value <= 0xdbff && Ahead("\\u")) {
        position_ += 2;
        ASSIGN_OR_RETURN(const uint32_t low, ReadHex(start, 4));
        if (low < 0xdc00 || low > 0xdfff) return ErrorAt(start, "half of a surrogate pair");
        return 0x10000 + ((value - 0xd800) << 10) + (low - 0xdc00);
      }
    }
    if (value > kMaxCodePoint || (value >= 0xd800 && value <= 0xdfff)) {
      return ErrorAt(start, "not a Unicode scalar value");
    }
    return value;
  }

  // One code point, or a class such as \d: then *ranges has something else than one value.
  absl::Status ReadEscape(bool in_class, std::vector<CodePointRange>* ranges) {
    const size_t start = position_++;
    if (AtEnd()) return ErrorAt(start, "'\\' at the end");
    const char c = text_[position_];
    const auto one = [&](uint32_t value) {
      ranges->push_back({value, value});
      return absl::OkStatus();
    };
    const auto all = [&](const CodePointSet& set) {
      ranges->insert(ranges->end(), set.ranges().begin(), set.ranges().end());
      return absl::OkStatus();
    };
    if (static_cast<unsigned char>(c) >= 0x80) return one(TakeCodePoint());
    ++position_;
    switch (c) {
      case 'd':
        return all(CodePointSet(Digit()));
      case 'w':
        return all(CodePointSet(Word()));
      case 's':
        return all(CodePointSet(Space()));
      case 'D':
        return all(CodePointSet(Digit()).Complement());
      case 'W':
        return all(CodePointSet(Word()).Complement());
      case 'S':
        return all(CodePointSet(Space()).Complement());
      case 't':
        return one('\t');
      case 'n':
        return one('\n');
      case 'r':
        return one('\r');
      case 'f':
        return one('\f');
      case 'v':
        return one('\v');
      case 'x': {
        ASSIGN_OR_RETURN(const uint32_t value, ReadHex(start, 2));
        return one(value);
      }
      case 'u': {
        ASSIGN_OR_RETURN(const uint32_t value, ReadUnicodeEscape(start));
        return one(value);
      }
      case '0':
        if (AtEnd() || !IsDigit(text_[position_])) return one(0);
        return ErrorAt(start, "octal escapes are not supported");
      case 'b':
        if (in_class) return one('\b');
        [[fallthrough]];
      case 'B':
        return ErrorAt(start, "word boundaries are not supported");
      case 'p':
      case 'P':
        return ErrorAt(start, "Unicode properties are not supported");
      case 'k':
        return ErrorAt(start, "back-references are not supported");
      default:
        break;
    }
    if (IsDigit(c)) return ErrorAt(start, "back-references are not supported");
    if (absl::ascii_isalpha(static_cast<unsigned char>(c))) {
      return ErrorAt(start, absl::StrCat("unknown escape '\\", absl::string_view(&c, 1), "'"));
    }
    return one(static_cast<unsigned char>(c));
  }

  static bool IsOne(const std::vector<CodePointRange>& ranges) {
    return ranges.size() == 1 && ranges[0].low == ranges[0].high;
  }

  absl::Status ReadClassItem(size_t start, std::vector<CodePointRange>* item) {
    if (AtEnd()) return ErrorAt(start, "the class is not closed");
    if (text_[position_] == '\\') return ReadEscape(true, item);
    if (Ahead("[:")) return Error("POSIX classes are not supported");
    const uint32_t value = TakeCodePoint();
    item->push_back({value, value});
    return absl::OkStatus();
  }

  absl::StatusOr<int32_t> ParseClass() {
    const size_t start = position_++;
    const bool negated = Take('^');
    if (Ahead("]")) return ErrorAt(start, "an empty class; write \\] for the bracket itself");
    std::vector<CodePointRange> ranges;
    while (!Take(']')) {
      std::vector<CodePointRange> item;
      RETURN_IF_ERROR(ReadClassItem(start, &item));
      if (Ahead("-") && !Ahead("-]")) {
        const size_t dash = position_++;
        std::vector<CodePointRange> last;
        RETURN_IF_ERROR(ReadClassItem(start, &last));
        if (!IsOne(item) || !IsOne(last)) {
          return ErrorAt(dash, "a range between anything but two characters");
        }
        if (item[0].low > last[0].low) return ErrorAt(dash, "the range is the wrong way round");
        item[0].high = last[0].high;
      }
      ranges.insert(ranges.end(), item.begin(), item.end());
    }
    CodePointSet set(ranges);
    if (negated) set = set.Complement();
    if (set.empty()) return ErrorAt(start, "the class has no characters");
    return AddSet(std::move(set));
  }

  const absl::string_view text_;
  size_t position_ = 0;
  size_t counts_end_ = 0;
  Regex regex_;
};

}  // namespace

absl::StatusOr<Regex> ParseRegex(absl::string_view pattern) {
  if (pattern.size() > kMaxGrammarBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the regular expression has ", pattern.size(),
                                                   " bytes, more than ", kMaxGrammarBytes));
  }
  if (!IsValidUtf8(pattern)) {
    return absl::InvalidArgumentError("the regular expression is not valid UTF-8");
  }
  return Parser(pattern).Parse();
}

}  // namespace fixpoint
