// The parts of JSON texts that schemas are made of. Texts are compact: no white space but at most
// one space behind each ':' and ','.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "grammar/nfa.h"

namespace fixpoint {

// Numbers are written with at most so many digits before and behind the point, and exponents below
// 100: every 64-bit integer and double parser can read them.
inline constexpr int32_t kNumberDigits = 18;
inline constexpr int64_t kMaxInteger = 999999999999999999;  // of so many digits

// Bounds of a number; whole ones only. Unset: none.
struct NumberBounds {
  int64_t min = -kMaxInteger;
  int64_t max = kMaxInteger;
  bool min_excluded = false;
  bool max_excluded = false;
};

// The rules that any schema may call, made when first asked for, and emitters: those add something
// behind `from` and return the state behind it.
class JsonRules {
 public:
  // `nfa` must outlive this.
  explicit JsonRules(Nfa* nfa) : nfa_(*nfa) {}

  // Rules.
  int32_t Character();  // one code point of a string, escaped or not
  int32_t String();
  int32_t Number();
  int32_t Integer();
  int32_t Value();  // any
  int32_t AnyObject();
  int32_t AnyArray();

  int32_t Separator(int32_t from, char c);  // ',' or ':', perhaps a space
  // min <= max <= kMaxInteger in magnitude; exclusion is not looked at.
  int32_t IntegerBetween(int32_t from, int64_t min, int64_t max);
  // Without exponent. Nothing follows when no number is inside.
  int32_t NumberBetween(int32_t from, const NumberBounds& bounds);
  // A string that is none of the names, written without escapes.
  int32_t OtherName(int32_t from, const std::vector<std::string>& names);

 private:
  int32_t Optional(int32_t from, char c);
  int32_t DigitRun(int32_t from, int32_t min, int32_t max);
  int32_t Fraction(int32_t from, int32_t max_digits);
  void SameLength(int32_t from, int64_t min, int64_t max, int32_t digits, int32_t to);
  void Natural(int32_t from, int64_t min, int64_t max, int32_t to);
  void Magnitude(int32_t from, int64_t min, bool min_excluded, int64_t max, bool max_excluded,
                 int32_t to);
  void FillObject(int32_t rule);
  void FillArray(int32_t rule);

  Nfa& nfa_;
  int32_t character_ = -1;
  int32_t string_ = -1;
  int32_t number_ = -1;
  int32_t integer_ = -1;
  int32_t value_ = -1;
  int32_t object_ = -1;
  int32_t array_ = -1;
};

// The text as a JSON string, escaped where JSON demands it only.
std::string JsonQuoted(absl::string_view utf8);

}  // namespace fixpoint
