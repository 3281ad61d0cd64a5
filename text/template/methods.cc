// Methods of strings and dicts.
#include <algorithm>

#include "base/status_macros.h"
#include "text/template/builtins.h"
#include "text/template/format.h"
#include "text/template/operators.h"
#include "text/template/strings.h"

namespace fixpoint {

const Value* Arguments::Get(size_t index, absl::string_view name) const {
  if (index < positional.size()) return &positional[index];
  for (const auto& [keyword, value] : named) {
    if (keyword == name) return &value;
  }
  return nullptr;
}

namespace {

absl::StatusOr<Value> CallDictMethod(absl::string_view name, const DictValue& dict,
                                     const Arguments& arguments, Budget* budget) {
  if (name == "get") {
    const MarkedString* key = arguments.positional[0].as_string();
    const Value* found = key ? dict.Find(key->text()) : nullptr;
    if (found) return *found;
    return arguments.positional.size() > 1 ? arguments.positional[1] : Value::MakeNone();
  }
  std::vector<Value> items;
  for (const auto& [key, value] : dict.entries()) {
    RETURN_IF_ERROR(budget->ChargeBytes(key.size()));
    if (name == "values") {
      items.push_back(value);
    } else if (name == "keys") {
      items.push_back(Value::String(key));
    } else if (name == "items") {
      items.push_back(Value::List({Value::String(key), value}, /*tuple=*/true));
    } else {
      return TemplateError("a dict has no method '", name, "' here");
    }
  }
  if (name != "values" && name != "keys" && name != "items")
    return TemplateError("a dict has no method '", name, "' here");
  return MakeList(std::move(items), budget);
}

absl::StatusOr<const MarkedString*> StringArgument(absl::string_view method, const Value& value) {
  if (value.as_string()) return value.as_string();
  return TemplateError("method '", method, "' wants a string, got ", value.KindName());
}

absl::StatusOr<Value> CallSplit(absl::string_view name, const MarkedString& text,
                                const Arguments& arguments, Budget* budget) {
  const Value* separator = arguments.Get(0, "sep");
  const Value* limit = arguments.Get(1, "maxsplit");
  int64_t max_splits = -1;
  if (limit && !ToInteger(*limit, &max_splits)) return TemplateError("maxsplit must be an integer");
  const bool from_right = name == "rsplit";
  // Before the parts are made: each costs a step, and there are at most as many as bytes.
  RETURN_IF_ERROR(budget->ChargeBytes(2 * text.size()));
  if (!separator || separator->is_none()) {
    RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(text.size() / 8)));
    return MakeStringList(SplitAtSpace(text, max_splits, from_right), budget);
  }
  ASSIGN_OR_RETURN(const MarkedString* by, StringArgument(name, *separator));
  if (by->empty()) return TemplateError("split by an empty separator");
  RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(text.size() / (8 * by->size()))));
  return MakeStringList(SplitBy(text, by->text(), max_splits, from_right), budget);
}

absl::StatusOr<Value> CallReplace(const MarkedString& text, const Arguments& arguments,
                                  Budget* budget) {
  ASSIGN_OR_RETURN(const MarkedString* from, StringArgument("replace", arguments.positional[0]));
  ASSIGN_OR_RETURN(const MarkedString* to, StringArgument("replace", arguments.positional[1]));
  int64_t count = -1;
  if (arguments.positional.size() > 2 && !ToInteger(arguments.positional[2], &count)) {
    return TemplateError("the count of replace must be an integer");
  }
  RETURN_IF_ERROR(budget->ChargeBytes(text.size()));
  RETURN_IF_ERROR(budget->ChargeBytes(ReplacedSize(text, from->text(), *to, count)));
  return Value::String(Replace(text, from->text(), *to, count));
}

// startswith and endswith take one string or a tuple of them.
absl::StatusOr<Value> HasAffix(absl::string_view name, absl::string_view text,
                               const Value& argument, Budget* budget) {
  std::vector<Value> affixes = {argument};
  if (argument.as_list()) affixes = argument.as_list()->items;
  for (const Value& affix : affixes) {
    ASSIGN_OR_RETURN(const MarkedString* wanted, StringArgument(name, affix));
    RETURN_IF_ERROR(budget->ChargeBytes(wanted->size()));
    if (wanted->size() > text.size()) continue;
    const size_t at = name == "startswith" ? 0 : text.size() - wanted->size();
    if (text.substr(at, wanted->size()) == wanted->text()) return Value::Bool(true);
  }
  return Value::Bool(false);
}

absl::StatusOr<Value> CallStrip(absl::string_view name, const MarkedString& text,
                                const Arguments& arguments, Budget* budget) {
  const StripSides sides = name == "strip"    ? kStripBoth
                           : name == "lstrip" ? kStripLeft
                                              : kStripRight;
  const MarkedString* characters = nullptr;
  if (!arguments.positional.empty() && !arguments.positional[0].is_none()) {
    ASSIGN_OR_RETURN(characters, StringArgument(name, arguments.positional[0]));
    if (characters->size() > 256) return TemplateError("strip of over 256 bytes of characters");
    RETURN_IF_ERROR(budget->ChargeBytes(text.size() * (1 + characters->size() / 16)));
  }
  RETURN_IF_ERROR(budget->ChargeBytes(text.size()));
  return Value::String(Strip(text, sides, characters));
}

absl::StatusOr<Value> CallJoin(const MarkedString& separator, const Value& argument,
                               Budget* budget) {
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(argument, budget));
  MarkedString out;
  for (size_t i = 0; i < items.size(); ++i) {
    ASSIGN_OR_RETURN(const MarkedString* item, StringArgument("join", items[i]));
    RETURN_IF_ERROR(budget->ChargeBytes(item->size() + separator.size()));
    if (i > 0) out.Append(separator);
    out.Append(*item);
  }
  return Value::String(std::move(out));
}

absl::StatusOr<Value> CallStringMethod(absl::string_view name, const MarkedString& text,
                                       const Arguments& arguments, Budget* budget) {
  if (name == "split" || name == "rsplit") return CallSplit(name, text, arguments, budget);
  if (name == "replace") return CallReplace(text, arguments, budget);
  if (name == "strip" || name == "lstrip" || name == "rstrip")
    return CallStrip(name, text, arguments, budget);
  if (name == "join") return CallJoin(text, arguments.positional[0], budget);
  if (name == "startswith" || name == "endswith")
    return HasAffix(name, text.text(), arguments.positional[0], budget);
  RETURN_IF_ERROR(budget->ChargeBytes(4 * text.size()));
  if (name == "upper") return Value::String(ChangeCase(text, CaseChange::kUpper));
  if (name == "lower") return Value::String(ChangeCase(text, CaseChange::kLower));
  if (name == "capitalize") return Value::String(ChangeCase(text, CaseChange::kCapitalize));
  if (name == "title") return Value::String(ChangeCase(text, CaseChange::kTitle));
  if (name == "find" || name == "count") {
    ASSIGN_OR_RETURN(const MarkedString* wanted, StringArgument(name, arguments.positional[0]));
    if (name == "find") {
      const size_t at = FindBytes(text.text(), wanted->text(), 0);
      if (at == absl::string_view::npos) return Value::Int(-1);
      return Value::Int(CountCodePoints(absl::string_view(text.text()).substr(0, at)));
    }
    if (wanted->empty()) return Value::Int(CountCodePoints(text.text()) + 1);
    return Value::Int(static_cast<int64_t>(SplitBy(text, wanted->text(), -1, false).size()) - 1);
  }
  return TemplateError("a string has no method '", name, "' here");
}

}  // namespace

absl::StatusOr<Value> CallMethod(absl::string_view name, const Value& object,
                                 const Arguments& arguments, Budget* budget) {
  if (const MarkedString* text = object.as_string())
    return CallStringMethod(name, *text, arguments, budget);
  if (const DictValue* dict = object.as_dict())
    return CallDictMethod(name, *dict, arguments, budget);
  return TemplateError("a value of kind ", object.KindName(), " has no method '", name, "'");
}

}  // namespace fixpoint
