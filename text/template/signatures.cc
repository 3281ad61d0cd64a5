#include "text/template/signatures.h"

#include <algorithm>
#include <limits>

namespace fixpoint {
namespace {

constexpr int kAny = std::numeric_limits<int>::max();

using Table = std::vector<Signature>;

const Signature* Find(const Table& table, absl::string_view name) {
  const auto found =
      std::find_if(table.begin(), table.end(), [&](const Signature& s) { return s.name == name; });
  return found == table.end() ? nullptr : &*found;
}

const Table& Filters() {
  static const Table* const table = new Table{
      {"abs", 0, 0, {}},
      {"capitalize", 0, 0, {}},
      {"count", 0, 0, {}},
      {"d", 0, 2, {"default_value", "boolean"}},
      {"default", 0, 2, {"default_value", "boolean"}},
      {"dictsort", 0, 3, {"case_sensitive", "by", "reverse"}},
      {"first", 0, 0, {}},
      {"indent", 0, 3, {"width", "first", "blank"}},
      {"int", 0, 1, {"default"}},
      {"items", 0, 0, {}},
      {"join", 0, 2, {"d", "attribute"}},
      {"last", 0, 0, {}},
      {"length", 0, 0, {}},
      {"list", 0, 0, {}},
      {"lower", 0, 0, {}},
      {"map", 0, kAny, {"attribute", "default"}},
      {"reject", 0, 2, {}},
      {"rejectattr", 1, 3, {}},
      {"replace", 2, 3, {"old", "new", "count"}},
      {"reverse", 0, 0, {}},
      {"safe", 0, 0, {}},
      {"select", 0, 2, {}},
      {"selectattr", 1, 3, {}},
      {"sort", 0, 3, {"reverse", "case_sensitive", "attribute"}},
      {"string", 0, 0, {}},
      {"title", 0, 0, {}},
      {"tojson", 0, 4, {"ensure_ascii", "indent", "separators", "sort_keys"}},
      {"trim", 0, 1, {"chars"}},
      {"unique", 0, 1, {"case_sensitive"}},
      {"upper", 0, 0, {}},
  };
  return *table;
}

const Table& Tests() {
  static const Table* const table = new Table{
      {"!=", 1, 1, {}},          {"<", 1, 1, {}},        {"<=", 1, 1, {}},
      {"==", 1, 1, {}},          {">", 1, 1, {}},        {">=", 1, 1, {}},
      {"boolean", 0, 0, {}},     {"defined", 0, 0, {}},  {"divisibleby", 1, 1, {}},
      {"eq", 1, 1, {}},          {"equalto", 1, 1, {}},  {"even", 0, 0, {}},
      {"false", 0, 0, {}},       {"float", 0, 0, {}},    {"ge", 1, 1, {}},
      {"greaterthan", 1, 1, {}}, {"gt", 1, 1, {}},       {"in", 1, 1, {}},
      {"integer", 0, 0, {}},     {"iterable", 0, 0, {}}, {"le", 1, 1, {}},
      {"lessthan", 1, 1, {}},    {"lower", 0, 0, {}},    {"lt", 1, 1, {}},
      {"mapping", 0, 0, {}},     {"ne", 1, 1, {}},       {"none", 0, 0, {}},
      {"number", 0, 0, {}},      {"odd", 0, 0, {}},      {"sequence", 0, 0, {}},
      {"string", 0, 0, {}},      {"true", 0, 0, {}},     {"undefined", 0, 0, {}},
      {"upper", 0, 0, {}},
  };
  return *table;
}

const Table& Methods() {
  static const Table* const table = new Table{
      {"capitalize", 0, 0, {}}, {"count", 1, 1, {}},
      {"endswith", 1, 1, {}},   {"find", 1, 1, {}},
      {"get", 1, 2, {}},        {"items", 0, 0, {}},
      {"join", 1, 1, {}},       {"keys", 0, 0, {}},
      {"lower", 0, 0, {}},      {"lstrip", 0, 1, {}},
      {"replace", 2, 3, {}},    {"rsplit", 0, 2, {"sep", "maxsplit"}},
      {"rstrip", 0, 1, {}},     {"split", 0, 2, {"sep", "maxsplit"}},
      {"startswith", 1, 1, {}}, {"strip", 0, 1, {}},
      {"title", 0, 0, {}},      {"upper", 0, 0, {}},
      {"values", 0, 0, {}},
  };
  return *table;
}

const Table& Functions() {
  static const Table* const table = new Table{
      {"dict", 0, 0, {}},  {"namespace", 0, 1, {}},    {"raise_exception", 1, 1, {}},
      {"range", 1, 3, {}}, {"strftime_now", 1, 1, {}},
  };
  return *table;
}

}  // namespace

const Signature* FindFilter(absl::string_view name) { return Find(Filters(), name); }
const Signature* FindTest(absl::string_view name) { return Find(Tests(), name); }
const Signature* FindMethod(absl::string_view name) { return Find(Methods(), name); }
const Signature* FindFunction(absl::string_view name) { return Find(Functions(), name); }

bool IsLoopAttribute(absl::string_view name) {
  static constexpr absl::string_view kNames[] = {"index",     "index0",   "revindex",
                                                 "revindex0", "first",    "last",
                                                 "length",    "previtem", "nextitem"};
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

}  // namespace fixpoint
