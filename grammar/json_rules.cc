#include "grammar/json_rules.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "grammar/regex.h"
#include "text/utf8.h"

namespace fixpoint {
namespace {

constexpr int32_t kBoundedFractionDigits = 9;

int64_t PowerOfTen(int32_t exponent) {
  int64_t power = 1;
  for (; exponent > 0; --exponent) power *= 10;
  return power;
}

int32_t CountDigits(int64_t value) {
  int32_t digits = 1;
  for (; value >= 10; value /= 10) ++digits;
  return digits;
}

// Code points that stand for themselves in a JSON string.
bool IsPlain(uint32_t c) { return c >= 0x20 && c != '"' && c != '\\'; }
const std::vector<CodePointRange>& PlainRanges() {
  static const auto* ranges = new std::vector<CodePointRange>{
      {0x20, '"' - 1}, {'"' + 1, '\\' - 1}, {'\\' + 1, kMaxCodePoint}};
  return *ranges;
}

struct NameNode {
  bool is_name = false;
  std::map<uint32_t, int32_t> children;
};

// Names by their code points, node 0 is the empty beginning. Names that need escapes are left out.
std::vector<NameNode> MakeNameTree(const std::vector<std::string>& names) {
  std::vector<NameNode> tree(1);
  for (const std::string& name : names) {
    std::vector<uint32_t> points;
    for (size_t i = 0; i < name.size();) {
      const CodePoint point = ReadCodePoint(name, i);
      points.push_back(point.value);
      i += point.length;
    }
    if (!std::all_of(points.begin(), points.end(), IsPlain)) continue;
    size_t node = 0;
    for (const uint32_t point : points) {
      const auto [child, added] =
          tree[node].children.try_emplace(point, static_cast<int32_t>(tree.size()));
      node = static_cast<size_t>(child->second);
      if (added) tree.emplace_back();
    }
    tree[node].is_name = true;
  }
  return tree;
}

}  // namespace

int32_t JsonRules::Optional(int32_t from, char c) {
  const int32_t to = nfa_.Literal(from, absl::string_view(&c, 1));
  nfa_.Silent(from, to);
  return to;
}

int32_t JsonRules::Separator(int32_t from, char c) {
  return Optional(nfa_.Literal(from, absl::string_view(&c, 1)), ' ');
}

int32_t JsonRules::DigitRun(int32_t from, int32_t min, int32_t max) {
  const int32_t to = nfa_.AddState();
  for (int32_t i = 0; i < max; ++i) {
    if (i >= min) nfa_.Silent(from, to);
    from = nfa_.Digits(from, 0, 9);
  }
  nfa_.Silent(from, to);
  return to;
}

int32_t JsonRules::Character() {
  if (character_ >= 0) return character_;
  character_ = nfa_.AddRule("a character");
  const auto [start, end, name] = nfa_.rule(character_);
  nfa_.Silent(nfa_.Set(start, CodePointSet(PlainRanges())), end);
  const int32_t escape = nfa_.Literal(start, "\\");
  for (const char* c : {"\"", "\\", "/", "b", "f", "n", "r", "t"}) {
    nfa_.Silent(nfa_.Literal(escape, c), end);
  }
  // \u and four digits: below D800, from E000 on, or both halves of a surrogate pair.
  const auto hex = [this](int32_t from, absl::string_view digits) {
    const int32_t to = nfa_.AddState();
    for (const char digit : digits) {
      const auto byte = static_cast<uint8_t>(digit);
      nfa_.Byte(from, byte, byte, to);
      if (digit >= 'a') nfa_.Byte(from, byte - 32, byte - 32, to);
    }
    return to;
  };
  constexpr absl::string_view kAll = "0123456789abcdef";
  const int32_t u = nfa_.Literal(escape, "u");
  const int32_t third = nfa_.AddState();
  nfa_.Silent(hex(hex(u, "0123456789abcef"), kAll), third);
  const int32_t d = hex(u, "d");
  nfa_.Silent(hex(d, "01234567"), third);
  nfa_.Silent(hex(hex(third, kAll), kAll), end);
  const int32_t high = hex(hex(hex(d, "89ab"), kAll), kAll);
  const int32_t low = hex(hex(nfa_.Literal(high, "\\u"), "d"), "cdef");
  nfa_.Silent(hex(hex(low, kAll), kAll), end);
  return character_;
}

int32_t JsonRules::String() {
  if (string_ >= 0) return string_;
  const int32_t character = Character();
  string_ = nfa_.AddRule("a string");
  const auto [start, end, name] = nfa_.rule(string_);
  const int32_t inside = nfa_.Literal(start, "\"");
  nfa_.Call(inside, character, inside);
  nfa_.Silent(nfa_.Literal(inside, "\""), end);
  return string_;
}

int32_t JsonRules::Fraction(int32_t from, int32_t max_digits) {
  const int32_t to = DigitRun(nfa_.Literal(from, "."), 1, max_digits);
  nfa_.Silent(from, to);
  return to;
}

int32_t JsonRules::Number() {
  if (number_ >= 0) return number_;
  number_ = nfa_.AddRule("a number");
  const auto [start, end, name] = nfa_.rule(number_);
  const int32_t natural = nfa_.AddState();
  Natural(Optional(start, '-'), 0, kMaxInteger, natural);
  const int32_t fraction = Fraction(natural, kNumberDigits);
  nfa_.Silent(fraction, end);
  const int32_t exponent = nfa_.AddState();
  nfa_.Byte(fraction, 'e', 'e', exponent);
  nfa_.Byte(fraction, 'E', 'E', exponent);
  const int32_t sign = nfa_.AddState();
  nfa_.Silent(exponent, sign);
  nfa_.Byte(exponent, '+', '+', sign);
  nfa_.Byte(exponent, '-', '-', sign);
  nfa_.Silent(DigitRun(sign, 1, 2), end);
  return number_;
}

int32_t JsonRules::Integer() {
  if (integer_ >= 0) return integer_;
  integer_ = nfa_.AddRule("an integer");
  const auto [start, end, name] = nfa_.rule(integer_);
  nfa_.Silent(IntegerBetween(start, -kMaxInteger, kMaxInteger), end);
  return integer_;
}

int32_t JsonRules::Value() {
  if (value_ >= 0) return value_;
  const int32_t string = String(), number = Number();
  value_ = nfa_.AddRule("a value");
  const auto [start, end, name] = nfa_.rule(value_);
  nfa_.Call(start, string, end);
  nfa_.Call(start, number, end);
  for (const char* word : {"true", "false", "null"}) nfa_.Silent(nfa_.Literal(start, word), end);
  nfa_.Call(start, AnyObject(), end);
  nfa_.Call(start, AnyArray(), end);
  return value_;
}

// The rule's number is known before its parts are made: they contain it.
int32_t JsonRules::AnyObject() {
  if (object_ >= 0) return object_;
  object_ = nfa_.AddRule("an object");
  FillObject(object_);
  return object_;
}

int32_t JsonRules::AnyArray() {
  if (array_ >= 0) return array_;
  array_ = nfa_.AddRule("an array");
  FillArray(array_);
  return array_;
}

void JsonRules::FillObject(int32_t rule) {
  const auto [start, end, name] = nfa_.rule(rule);
  const int32_t open = nfa_.Literal(start, "{");
  const int32_t key = nfa_.AddState();
  nfa_.Silent(open, key);
  const int32_t colon = Separator(nfa_.CallThen(key, String()), ':');
  const int32_t after = nfa_.CallThen(colon, Value());
  nfa_.Silent(Separator(after, ','), key);
  nfa_.Byte(open, '}', '}', end);
  nfa_.Byte(after, '}', '}', end);
}

void JsonRules::FillArray(int32_t rule) {
  const auto [start, end, name] = nfa_.rule(rule);
  const int32_t open = nfa_.Literal(start, "[");
  const int32_t item = nfa_.AddState();
  nfa_.Silent(open, item);
  const int32_t after = nfa_.CallThen(item, Value());
  nfa_.Silent(Separator(after, ','), item);
  nfa_.Byte(open, ']', ']', end);
  nfa_.Byte(after, ']', ']', end);
}

// `digits` digits, leading zeros included. Splits off the first digit; past the first difference
// one of the ends is all zeros or all nines, so the states grow with the digits alone.
void JsonRules::SameLength(int32_t from, int64_t min, int64_t max, int32_t digits, int32_t to) {
  if (digits == 0) {
    nfa_.Silent(from, to);
    return;
  }
  const int64_t unit = PowerOfTen(digits - 1);
  const auto low = static_cast<uint8_t>(min / unit), high = static_cast<uint8_t>(max / unit);
  const int64_t low_rest = min % unit, high_rest = max % unit;
  const auto any_rest = [&](uint8_t first, uint8_t last) {
    nfa_.Silent(DigitRun(nfa_.Digits(from, first, last), digits - 1, digits - 1), to);
  };
  if (low_rest == 0 && high_rest == unit - 1) {
    any_rest(low, high);
  } else if (low == high) {
    SameLength(nfa_.Digits(from, low, low), low_rest, high_rest, digits - 1, to);
  } else {
    SameLength(nfa_.Digits(from, low, low), low_rest, unit - 1, digits - 1, to);
    if (low + 1 < high) any_rest(low + 1, high - 1);
    SameLength(nfa_.Digits(from, high, high), 0, high_rest, digits - 1, to);
  }
}

void JsonRules::Natural(int32_t from, int64_t min, int64_t max, int32_t to) {
  for (int32_t digits = CountDigits(min); digits <= CountDigits(max); ++digits) {
    const int64_t least = digits == 1 ? 0 : PowerOfTen(digits - 1);
    const int64_t most = PowerOfTen(digits) - 1;
    SameLength(from, std::max(min, least), std::min(max, most), digits, to);
  }
}

int32_t JsonRules::IntegerBetween(int32_t from, int64_t min, int64_t max) {
  const int32_t to = nfa_.AddState();
  if (max >= 0) Natural(from, std::max<int64_t>(min, 0), max, to);
  if (min < 0) Natural(nfa_.Literal(from, "-"), std::max<int64_t>(-max, 1), -min, to);
  return to;
}

// Whole parts from min to max - 1 may have any fraction, max itself none but zeros.
void JsonRules::Magnitude(int32_t from, int64_t min, bool min_excluded, int64_t max,
                          bool max_excluded, int32_t to) {
  if (min_excluded && min < max) {
    const int32_t whole = nfa_.AddState();
    Natural(from, min, min, whole);
    int32_t at = nfa_.Literal(whole, ".");
    for (int32_t left = kBoundedFractionDigits - 1; left >= 0; --left) {
      nfa_.Silent(DigitRun(nfa_.Digits(at, 1, 9), 0, left), to);
      at = nfa_.Digits(at, 0, 0);
    }
    ++min;
    min_excluded = false;
  }
  if (min < max) {
    const int32_t whole = nfa_.AddState();
    Natural(from, min, max - 1, whole);
    nfa_.Silent(Fraction(whole, kBoundedFractionDigits), to);
  }
  if (!max_excluded && !min_excluded && min <= max) {
    const int32_t whole = nfa_.AddState();
    Natural(from, max, max, whole);
    nfa_.Silent(whole, to);
    nfa_.Silent(nfa_.Literal(whole, ".0"), to);
  }
}

int32_t JsonRules::NumberBetween(int32_t from, const NumberBounds& bounds) {
  const int32_t to = nfa_.AddState();
  if (bounds.max >= 0) {
    Magnitude(from, std::max<int64_t>(bounds.min, 0), bounds.min >= 0 && bounds.min_excluded,
              bounds.max, bounds.max_excluded, to);
  }
  if (bounds.min < 0) {
    Magnitude(nfa_.Literal(from, "-"), std::max<int64_t>(-bounds.max, 0),
              bounds.max <= 0 && bounds.max_excluded, -bounds.min, bounds.min_excluded, to);
  }
  return to;
}

int32_t JsonRules::OtherName(int32_t from, const std::vector<std::string>& names) {
  if (names.empty()) return nfa_.CallThen(from, String());
  const std::vector<NameNode> tree = MakeNameTree(names);
  const int32_t end = nfa_.AddState();
  const int32_t other = nfa_.AddState();  // no longer the beginning of a name
  nfa_.Silent(nfa_.Set(other, CodePointSet(PlainRanges())), other);
  nfa_.Byte(other, '"', '"', end);
  std::vector<int32_t> states(tree.size());
  for (int32_t& state : states) state = nfa_.AddState();
  nfa_.Byte(from, '"', '"', states[0]);
  for (size_t i = 0; i < tree.size() && !nfa_.full(); ++i) {
    std::vector<CodePointRange> next = {{0, 0x1f}, {'"', '"'}, {'\\', '\\'}};
    for (const auto& [point, child] : tree[i].children) {
      next.push_back({point, point});
      nfa_.Silent(nfa_.Set(states[i], CodePointSet({{point, point}})),
                  states[static_cast<size_t>(child)]);
    }
    nfa_.Silent(nfa_.Set(states[i], CodePointSet(next).Complement()), other);
    if (!tree[i].is_name) nfa_.Byte(states[i], '"', '"', end);
  }
  return end;
}

std::string JsonQuoted(absl::string_view utf8) {
  std::string quoted = "\"";
  for (const char c : utf8) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      absl::StrAppend(&quoted, "\\", absl::string_view(&c, 1));
    } else if (byte < 0x20) {
      absl::StrAppend(&quoted, "\\u", absl::Hex(byte, absl::kZeroPad4));
    } else {
      quoted.push_back(c);
    }
  }
  quoted.push_back('"');
  return quoted;
}

}  // namespace fixpoint
