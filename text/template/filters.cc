// Filters.
#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

#include "base/status_macros.h"
#include "text/template/builtins.h"
#include "text/template/format.h"
#include "text/template/operators.h"
#include "text/template/strings.h"

namespace fixpoint {
namespace {

using Result = absl::StatusOr<Value>;

absl::Status WrongInput(absl::string_view filter, const Value& input) {
  return TemplateError("filter '", filter, "' on ", input.KindName(), " is not supported");
}

bool Flag(const Arguments& arguments, size_t index, absl::string_view name,
          bool otherwise = false) {
  const Value* value = arguments.Get(index, name);
  return value ? value->Truthy() : otherwise;
}

Result Length(const Value& input, Budget* budget) {
  if (input.is_undefined()) return Value::Int(0);
  if (input.as_list()) return Value::Int(static_cast<int64_t>(input.as_list()->items.size()));
  if (input.as_dict()) return Value::Int(static_cast<int64_t>(input.as_dict()->entries().size()));
  if (!input.as_string()) return WrongInput("length", input);
  RETURN_IF_ERROR(budget->ChargeBytes(input.as_string()->size()));
  return Value::Int(CountCodePoints(input.as_string()->text()));
}

Result ToJsonFilter(const Value& input, const Arguments& arguments, Budget* budget) {
  JsonOptions options;
  options.ensure_ascii = Flag(arguments, 0, "ensure_ascii");
  options.sort_keys = Flag(arguments, 3, "sort_keys");
  if (const Value* indent = arguments.Get(1, "indent"); indent && !indent->is_none()) {
    int64_t width;
    if (!ToInteger(*indent, &width) || width < 0 || width > 64)
      return TemplateError("tojson: indent must be 0 to 64");
    options.indent = static_cast<int>(width);
    options.item_separator.assign(1, ',');
  }
  if (const Value* separators = arguments.Get(2, "separators");
      separators && !separators->is_none()) {
    const ListValue* pair = separators->as_list();
    if (!pair || pair->items.size() != 2 || !pair->items[0].as_string() ||
        !pair->items[1].as_string()) {
      return TemplateError("tojson: separators must be two strings");
    }
    options.item_separator = pair->items[0].as_string()->text();
    options.key_separator = pair->items[1].as_string()->text();
  }
  ASSIGN_OR_RETURN(std::string text, ToJson(input, options, budget));
  return Value::String(std::move(text));
}

// "a.b.0" step by step, as Jinja's attribute arguments go.
Result AttributePath(const Value& item, const Value& path, Budget* budget) {
  int64_t index;
  if (ToInteger(path, &index)) return GetItem(item, path, budget);
  if (!path.as_string()) return TemplateError("an attribute must be named by a string");
  Value value = item;
  for (const absl::string_view part : absl::StrSplit(path.as_string()->text(), '.')) {
    RETURN_IF_ERROR(budget->Charge(1));
    int64_t number;
    const bool is_index = !part.empty() &&
                          std::all_of(part.begin(), part.end(), absl::ascii_isdigit) &&
                          absl::SimpleAtoi(part, &number);
    ASSIGN_OR_RETURN(
        value,
        GetItem(value, is_index ? Value::Int(number) : Value::String(std::string(part)), budget));
  }
  return value;
}

// select, reject, selectattr, rejectattr
Result Select(absl::string_view name, const Value& input, const Arguments& arguments,
              Budget* budget) {
  const bool by_attribute = name == "selectattr" || name == "rejectattr";
  const bool wanted = name == "select" || name == "selectattr";
  const size_t test_at = by_attribute ? 1 : 0;
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(input, budget));
  std::vector<Value> kept;
  const auto& given = arguments.positional;
  for (const Value& item : items) {
    Value tested = item;
    if (by_attribute) {
      ASSIGN_OR_RETURN(tested, AttributePath(item, given[0], budget));
    }
    bool passes = tested.Truthy();
    if (given.size() > test_at) {
      const std::vector<Value> rest(given.begin() + static_cast<int64_t>(test_at) + 1, given.end());
      ASSIGN_OR_RETURN(passes, ApplyTest(given[test_at].as_string()->text(), tested, rest, budget));
    }
    if (passes == wanted) kept.push_back(item);
  }
  return MakeList(std::move(kept), budget);
}

Result Map(const Value& input, const Arguments& arguments, Budget* budget) {
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(input, budget));
  std::vector<Value> mapped;
  const auto& given = arguments.positional;
  for (const Value& item : items) {
    Value value;
    if (given.empty()) {
      const Value* attribute = arguments.Get(kNoPosition, "attribute");
      if (!attribute) return TemplateError("filter 'map' needs a filter or an attribute");
      ASSIGN_OR_RETURN(value, AttributePath(item, *attribute, budget));
      const Value* otherwise = arguments.Get(kNoPosition, "default");
      if (value.is_undefined() && otherwise) value = *otherwise;
    } else {
      Arguments rest;
      rest.positional.assign(given.begin() + 1, given.end());
      ASSIGN_OR_RETURN(value, ApplyFilter(given[0].as_string()->text(), item, rest, budget));
    }
    mapped.push_back(std::move(value));
  }
  return MakeList(std::move(mapped), budget);
}

Result Join(const Value& input, const Arguments& arguments, Budget* budget) {
  MarkedString separator;
  if (const Value* given = arguments.Get(0, "d")) {
    ASSIGN_OR_RETURN(separator, ToText(*given, budget));
  }
  const Value* attribute = arguments.Get(1, "attribute");
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(input, budget));
  MarkedString out;
  for (size_t i = 0; i < items.size(); ++i) {
    Value item = items[i];
    if (attribute && !attribute->is_none()) {
      ASSIGN_OR_RETURN(item, AttributePath(item, *attribute, budget));
    }
    ASSIGN_OR_RETURN(const MarkedString text, ToText(item, budget));
    RETURN_IF_ERROR(budget->ChargeBytes(separator.size()));
    if (i > 0) out.Append(separator);
    out.Append(text);
  }
  return Value::String(std::move(out));
}

Result Indent(const Value& input, const Arguments& arguments, Budget* budget) {
  ASSIGN_OR_RETURN(const MarkedString text, ToText(input, budget));
  MarkedString indention(std::string(4, ' '), true);
  if (const Value* width = arguments.Get(0, "width")) {
    int64_t count;
    if (width->as_string()) {
      indention = *width->as_string();
    } else if (ToInteger(*width, &count) && count <= 256) {
      indention =
          MarkedString(std::string(static_cast<size_t>(std::max<int64_t>(count, 0)), ' '), true);
    } else {
      return TemplateError("filter 'indent': width must be a string or at most 256");
    }
  }
  const bool first = Flag(arguments, 1, "first");
  const bool blank = Flag(arguments, 2, "blank");
  const std::vector<MarkedString> lines = SplitBy(text, "\n", -1, false);
  RETURN_IF_ERROR(budget->ChargeBytes(text.size() + lines.size() * (indention.size() + 64)));
  MarkedString out;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out.Append("\n", true);
    if (i == 0 ? first : blank || !lines[i].empty()) out.Append(indention);
    out.Append(lines[i]);
  }
  return Value::String(std::move(out));
}

// What sort, unique and dictsort order by: strings without regard to case unless asked.
Result SortKey(const Value& value, bool case_sensitive, Budget* budget) {
  if (case_sensitive || !value.as_string()) return value;
  RETURN_IF_ERROR(budget->ChargeBytes(value.as_string()->size() * 4));
  return Value::String(ChangeCase(*value.as_string(), CaseChange::kLower));
}

absl::StatusOr<std::vector<Value>> SortBy(std::vector<Value> keys, const std::vector<Value>& items,
                                          bool reverse, Budget* budget) {
  std::vector<size_t> order(items.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  absl::Status error;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    if (!error.ok()) return false;
    const auto less =
        Compare("<", reverse ? keys[b] : keys[a], reverse ? keys[a] : keys[b], budget);
    error = less.ok() ? budget->Charge(1) : less.status();
    return less.ok() && *less;
  });
  RETURN_IF_ERROR(error);
  std::vector<Value> sorted;
  for (const size_t i : order) sorted.push_back(items[i]);
  return sorted;
}

Result Sort(const Value& input, const Arguments& arguments, Budget* budget) {
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(input, budget));
  const Value* attribute = arguments.Get(2, "attribute");
  std::vector<Value> keys;
  for (const Value& item : items) {
    Value key = item;
    if (attribute && !attribute->is_none()) {
      ASSIGN_OR_RETURN(key, AttributePath(item, *attribute, budget));
    }
    ASSIGN_OR_RETURN(key, SortKey(key, Flag(arguments, 1, "case_sensitive"), budget));
    keys.push_back(std::move(key));
  }
  ASSIGN_OR_RETURN(std::vector<Value> sorted,
                   SortBy(std::move(keys), items, Flag(arguments, 0, "reverse"), budget));
  return MakeList(std::move(sorted), budget);
}

Result DictSort(const Value& input, const Arguments& arguments, Budget* budget) {
  if (!input.as_dict()) return WrongInput("dictsort", input);
  const Value* by = arguments.Get(1, "by");
  const bool by_value = by && by->as_string() && by->as_string()->text() == "value";
  std::vector<Value> items, keys;
  for (const auto& [key, value] : input.as_dict()->entries()) {
    RETURN_IF_ERROR(budget->ChargeBytes(key.size()));
    items.push_back(Value::List({Value::String(key), value}, /*tuple=*/true));
    ASSIGN_OR_RETURN(Value sort_key, SortKey(by_value ? value : Value::String(key),
                                             Flag(arguments, 0, "case_sensitive"), budget));
    keys.push_back(std::move(sort_key));
  }
  ASSIGN_OR_RETURN(std::vector<Value> sorted,
                   SortBy(std::move(keys), items, Flag(arguments, 2, "reverse"), budget));
  return MakeList(std::move(sorted), budget);
}

Result Unique(const Value& input, const Arguments& arguments, Budget* budget) {
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(input, budget));
  absl::flat_hash_set<std::string> seen;
  std::vector<Value> kept;
  for (const Value& item : items) {
    int64_t number;
    if (!item.as_string() && !ToInteger(item, &number)) return WrongInput("unique", item);
    ASSIGN_OR_RETURN(const Value key, SortKey(item, Flag(arguments, 0, "case_sensitive"), budget));
    const std::string name =
        key.as_string() ? absl::StrCat("s", key.as_string()->text()) : absl::StrCat("i", number);
    if (seen.insert(name).second) kept.push_back(item);
  }
  return MakeList(std::move(kept), budget);
}

// int(): what Python's int() takes in decimal, or a float cut off; else the default.
Result ToInt(const Value& input, const Arguments& arguments) {
  int64_t number;
  if (ToInteger(input, &number)) return Value::Int(number);
  const Value* given = arguments.Get(0, "default");
  const Value otherwise = given ? *given : Value::Int(0);
  absl::string_view text;
  if (input.as_string()) text = input.as_string()->text();
  if (input.as_number_text()) text = *input.as_number_text();
  if (text.empty()) return otherwise;
  if (absl::SimpleAtoi(text, &number)) return Value::Int(number);
  double real;
  if (!absl::SimpleAtod(text, &real) || !std::isfinite(real) || std::abs(real) >= 9e18)
    return otherwise;
  return Value::Int(static_cast<int64_t>(real));
}

Result Default(const Value& input, const Arguments& arguments) {
  const Value* otherwise = arguments.Get(0, "default_value");
  const bool missing = input.is_undefined() || (Flag(arguments, 1, "boolean") && !input.Truthy());
  if (!missing) return input;
  return otherwise ? *otherwise : Value::String("", true);
}

Result FirstOrLast(bool first, const Value& input, Budget* budget) {
  if (!first && input.as_dict()) return WrongInput("last", input);
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(input, budget));
  if (items.empty()) return Value();
  return first ? items.front() : items.back();
}

Result Reverse(const Value& input, Budget* budget) {
  const Value minus_one = Value::Int(-1);
  if (input.as_string()) return GetSlice(input, nullptr, nullptr, &minus_one, budget);
  ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(input, budget));
  std::reverse(items.begin(), items.end());
  return MakeList(std::move(items), budget);
}

Result Absolute(const Value& input) {
  int64_t number;
  if (!ToInteger(input, &number)) return WrongInput("abs", input);
  return number < 0 ? Negate(input) : Value::Int(number);
}

Result ListOf(const Value& input, Budget* budget) {
  ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(input, budget));
  return MakeList(std::move(items), budget);
}

// Filters that work on str(input).
Result TextFilter(absl::string_view name, const Value& input, const Arguments& arguments,
                  Budget* budget) {
  ASSIGN_OR_RETURN(MarkedString text, ToText(input, budget));
  RETURN_IF_ERROR(budget->ChargeBytes(4 * text.size()));
  if (name == "string" || name == "safe") return Value::String(std::move(text));
  if (name == "upper") return Value::String(ChangeCase(text, CaseChange::kUpper));
  if (name == "lower") return Value::String(ChangeCase(text, CaseChange::kLower));
  if (name == "capitalize") return Value::String(ChangeCase(text, CaseChange::kCapitalize));
  if (name == "title") return Value::String(JinjaTitle(text));
  const Value string = Value::String(std::move(text));
  Arguments plain;
  if (name == "trim") {
    if (const Value* characters = arguments.Get(0, "chars")) plain.positional = {*characters};
    return CallMethod("strip", string, plain, budget);
  }
  for (const auto& [index, keyword] : {std::pair{0, "old"}, {1, "new"}, {2, "count"}}) {  // replace
    const Value* argument = arguments.Get(static_cast<size_t>(index), keyword);
    if (argument == nullptr && index < 2)
      return TemplateError("filter 'replace' needs two strings");
    if (argument == nullptr || argument->is_none()) continue;
    plain.positional.push_back(*argument);
  }
  if (plain.positional.size() < 2) return TemplateError("filter 'replace' needs two strings");
  return CallMethod("replace", string, plain, budget);
}

}  // namespace

absl::StatusOr<Value> ApplyFilter(absl::string_view name, const Value& input,
                                  const Arguments& arguments, Budget* budget) {
  RETURN_IF_ERROR(budget->Charge(1));
  if (name == "length" || name == "count") return Length(input, budget);
  if (name == "tojson") return ToJsonFilter(input, arguments, budget);
  if (name == "join") return Join(input, arguments, budget);
  if (name == "map") return Map(input, arguments, budget);
  if (name == "select" || name == "reject" || name == "selectattr" || name == "rejectattr") {
    return Select(name, input, arguments, budget);
  }
  if (name == "default" || name == "d") return Default(input, arguments);
  if (name == "first" || name == "last") return FirstOrLast(name == "first", input, budget);
  if (name == "list") return ListOf(input, budget);
  if (name == "items") {
    if (input.is_undefined()) return MakeList({}, budget);
    return input.as_dict() ? CallMethod("items", input, {}, budget) : WrongInput(name, input);
  }
  if (name == "int") return ToInt(input, arguments);
  if (name == "abs") return Absolute(input);
  if (name == "reverse") return Reverse(input, budget);
  if (name == "sort") return Sort(input, arguments, budget);
  if (name == "dictsort") return DictSort(input, arguments, budget);
  if (name == "unique") return Unique(input, arguments, budget);
  if (name == "indent") return Indent(input, arguments, budget);
  return TextFilter(name, input, arguments, budget);
}

}  // namespace fixpoint
