#include "text/template/operators.h"

#include <algorithm>

#include "base/status_macros.h"
#include "text/template/signatures.h"
#include "text/template/strings.h"
#include "text/utf8.h"

namespace fixpoint {
namespace {

absl::Status CheckItem(const Value& item) {
  if (item.as_namespace() || item.as_loop() || item.as_function()) {
    return TemplateError("a ", item.KindName(), " inside a list or dict is not supported");
  }
  return absl::OkStatus();
}

absl::Status CheckDepth(int depth, const Budget& budget) {
  if (depth <= budget.max_depth()) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("chat template nests values over ", budget.max_depth(), " deep"));
}

absl::Status NoOperator(absl::string_view op, const Value& left, const Value& right) {
  return TemplateError("operator ", op, " on ", left.KindName(), " and ", right.KindName(),
                       " is not supported");
}

Value LoopAttribute(const LoopValue& loop, absl::string_view name) {
  const auto& items = *loop.items;
  const auto length = static_cast<int64_t>(items.size());
  if (name == "index") return Value::Int(loop.index0 + 1);
  if (name == "index0") return Value::Int(loop.index0);
  if (name == "revindex") return Value::Int(length - loop.index0);
  if (name == "revindex0") return Value::Int(length - loop.index0 - 1);
  if (name == "first") return Value::Bool(loop.index0 == 0);
  if (name == "last") return Value::Bool(loop.index0 == length - 1);
  if (name == "length") return Value::Int(length);
  if (name == "previtem") return loop.index0 > 0 ? items[loop.index0 - 1] : Value();
  if (name == "nextitem") return loop.index0 + 1 < length ? items[loop.index0 + 1] : Value();
  return Value();
}

absl::StatusOr<Value> CalculateIntegers(absl::string_view op, int64_t a, int64_t b) {
  int64_t out = 0;
  bool overflow = false;
  if (op == "+") {
    overflow = __builtin_add_overflow(a, b, &out);
  } else if (op == "-") {
    overflow = __builtin_sub_overflow(a, b, &out);
  } else if (op == "*") {
    overflow = __builtin_mul_overflow(a, b, &out);
  } else {
    if (b == 0) return TemplateError("division by zero");
    if (b == -1) {  // apart, because INT64_MIN / -1 traps
      overflow = op == "//" && __builtin_sub_overflow(int64_t{0}, a, &out);
    } else {
      const int64_t remainder = a % b;
      const bool floors = remainder != 0 && (remainder < 0) != (b < 0);
      out = op == "//" ? a / b - floors : remainder + (floors ? b : 0);
    }
  }
  if (overflow) return TemplateError("integer overflow in ", a, " ", op, " ", b);
  return Value::Int(out);
}

absl::StatusOr<Value> RepeatString(const MarkedString& text, int64_t count, Budget* budget) {
  const int64_t size = static_cast<int64_t>(text.size());
  if (count <= 0 || size == 0) return Value::String("", true);
  if (count > *budget->steps_left()) return budget->Charge(count);
  RETURN_IF_ERROR(budget->Charge(count));
  RETURN_IF_ERROR(
      budget->ChargeBytes(static_cast<size_t>(std::min(count, int64_t{1} << 30)) * text.size()));
  MarkedString out;
  for (int64_t i = 0; i < count; ++i) out.Append(text);
  return Value::String(std::move(out));
}

// -1, 0, 1 as Python orders numbers and strings.
absl::StatusOr<int> Order(absl::string_view op, const Value& left, const Value& right,
                          Budget* budget) {
  int64_t a, b;
  if (ToInteger(left, &a) && ToInteger(right, &b)) return a < b ? -1 : a > b;
  if (left.as_string() && right.as_string()) {
    RETURN_IF_ERROR(
        budget->ChargeBytes(std::min(left.as_string()->size(), right.as_string()->size())));
    const int order = left.as_string()->text().compare(
        right.as_string()->text());  // bytes order as code points do
    return order < 0 ? -1 : order > 0;
  }
  return NoOperator(op, left, right);
}

// Positions [from, to) going up, (to, from] going down; all that the walk touches lie within the
// object.
struct SliceRange {
  int64_t from, to, step;
};

absl::StatusOr<SliceRange> ResolveSlice(const Value* start, const Value* stop, const Value* step,
                                        int64_t size) {
  auto read = [](const Value* value, int64_t otherwise, int64_t* out) -> absl::Status {
    *out = otherwise;
    if (value == nullptr || value->is_none() || ToInteger(*value, out)) return absl::OkStatus();
    return TemplateError("slice index must be an integer, is ", value->KindName());
  };
  SliceRange range;
  RETURN_IF_ERROR(read(step, 1, &range.step));
  if (range.step == 0) return TemplateError("slice step cannot be zero");
  range.step = std::clamp(range.step, -size - 1, size + 1);
  const int64_t lowest = range.step > 0 ? 0 : -1;
  const int64_t highest = range.step > 0 ? size : size - 1;
  RETURN_IF_ERROR(read(start, range.step > 0 ? lowest : highest, &range.from));
  RETURN_IF_ERROR(read(stop, range.step > 0 ? highest : lowest, &range.to));
  auto resolve = [&](const Value* given, int64_t* index) {
    if (given == nullptr || given->is_none()) return;
    if (*index < 0) *index = *index < -size ? lowest : *index + size;
    *index = std::clamp(*index, lowest, highest);
  };
  resolve(start, &range.from);
  resolve(stop, &range.to);
  return range;
}

size_t ByteOfCodePoint(const MarkedString& text, int64_t index) {
  size_t position = 0;
  for (; index > 0 && position < text.size(); --index) {
    position += ReadCodePoint(text.text(), position).length;
  }
  return position;
}

absl::StatusOr<bool> Contains(const Value& container, const Value& item, Budget* budget) {
  if (container.is_undefined()) return false;
  if (const MarkedString* text = container.as_string()) {
    const MarkedString* needle = item.as_string();
    if (needle == nullptr) return NoOperator("in", item, container);
    RETURN_IF_ERROR(budget->ChargeBytes(text->size() + needle->size()));
    return FindBytes(text->text(), needle->text(), 0) != absl::string_view::npos;
  }
  if (const DictValue* dict = container.as_dict()) {
    return item.as_string() != nullptr && dict->Find(item.as_string()->text()) != nullptr;
  }
  if (const ListValue* list = container.as_list()) {
    for (const Value& candidate : list->items) {
      const bool equal = ValuesEqual(candidate, item, budget->steps_left());
      RETURN_IF_ERROR(budget->Check());
      if (equal) return true;
    }
    return false;
  }
  return NoOperator("in", item, container);
}

}  // namespace

bool ToInteger(const Value& value, int64_t* out) {
  if (const int64_t* number = value.as_int())
    *out = *number;
  else if (const bool* flag = value.as_bool())
    *out = *flag ? 1 : 0;
  else
    return false;
  return true;
}

absl::StatusOr<Value> MakeList(std::vector<Value> items, Budget* budget, bool tuple) {
  RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(items.size())));
  for (const Value& item : items) RETURN_IF_ERROR(CheckItem(item));
  Value list = Value::List(std::move(items), tuple);
  RETURN_IF_ERROR(CheckDepth(list.Depth(), *budget));
  return list;
}

absl::StatusOr<Value> MakeDict(DictValue dict, Budget* budget) {
  RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(dict.entries().size())));
  for (const auto& entry : dict.entries()) RETURN_IF_ERROR(CheckItem(entry.second));
  RETURN_IF_ERROR(CheckDepth(dict.depth(), *budget));
  return Value::Dict(std::move(dict));
}

absl::StatusOr<Value> MakeStringList(std::vector<MarkedString> parts, Budget* budget) {
  std::vector<Value> items;
  items.reserve(parts.size());
  for (MarkedString& part : parts) items.push_back(Value::String(std::move(part)));
  return MakeList(std::move(items), budget);
}

absl::StatusOr<Value> GetAttribute(const Value& object, absl::string_view name) {
  if (object.is_undefined()) return TemplateError("attribute '", name, "' of an undefined value");
  const bool has_methods = object.as_dict() != nullptr || object.as_string() != nullptr;
  if (const NamespaceValue* space = object.as_namespace()) {
    const auto found = space->attributes.find(name);
    return found == space->attributes.end() ? Value() : found->second;
  }
  if (const LoopValue* loop = object.as_loop()) return LoopAttribute(*loop, name);
  if (has_methods && FindMethod(name) &&
      !(object.as_dict() && name != "items" && name != "keys" && name != "values" &&
        name != "get")) {
    return TemplateError("method '", name, "' without a call is not supported");
  }
  if (const DictValue* dict = object.as_dict()) {
    const Value* found = dict->Find(name);
    return found ? *found : Value();
  }
  return Value();
}

absl::StatusOr<Value> GetItem(const Value& object, const Value& key, Budget* budget) {
  if (object.is_undefined()) return TemplateError("item of an undefined value");
  if (const DictValue* dict = object.as_dict()) {
    const MarkedString* name = key.as_string();
    const Value* found = name ? dict->Find(name->text()) : nullptr;
    return found ? *found : Value();
  }
  int64_t index;
  if (!ToInteger(key, &index)) {
    if (object.as_namespace() && key.as_string())
      return GetAttribute(object, key.as_string()->text());
    return Value();
  }
  if (const ListValue* list = object.as_list()) {
    const auto size = static_cast<int64_t>(list->items.size());
    if (index < 0) index += size;
    return index >= 0 && index < size ? list->items[index] : Value();
  }
  if (const MarkedString* text = object.as_string()) {
    RETURN_IF_ERROR(budget->ChargeBytes(text->size()));
    if (index < 0) index += CountCodePoints(text->text());
    const size_t position = ByteOfCodePoint(*text, index);
    if (index < 0 || position >= text->size()) return Value();
    return Value::String(
        text->Substring(position, position + ReadCodePoint(text->text(), position).length));
  }
  return Value();
}

absl::StatusOr<Value> GetSlice(const Value& object, const Value* start, const Value* stop,
                               const Value* step, Budget* budget) {
  const MarkedString* text = object.as_string();
  if (!text && !object.as_list()) {
    return TemplateError("a slice of ", object.KindName(), " is not supported");
  }
  int64_t size = 0;
  if (text) {
    RETURN_IF_ERROR(budget->ChargeBytes(2 * text->size()));
    size = CountCodePoints(text->text());
  } else {
    size = static_cast<int64_t>(object.as_list()->items.size());
  }
  ASSIGN_OR_RETURN(const SliceRange range, ResolveSlice(start, stop, step, size));
  if (text && range.step == 1) {  // the usual prompt[:-1], without a value per character
    const size_t begin = ByteOfCodePoint(*text, range.from);
    return Value::String(
        text->Substring(begin, ByteOfCodePoint(*text, std::max(range.from, range.to))));
  }
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(object, budget));
  std::vector<Value> picked;
  MarkedString joined;
  for (int64_t i = range.from; range.step > 0 ? i < range.to : i > range.to; i += range.step) {
    if (text) {
      joined.Append(*items[i].as_string());
    } else {
      picked.push_back(items[i]);
    }
  }
  if (text) return Value::String(std::move(joined));
  return MakeList(std::move(picked), budget, object.as_list()->tuple);
}

absl::StatusOr<std::vector<Value>> Iterate(const Value& value, Budget* budget) {
  std::vector<Value> items;
  if (const ListValue* list = value.as_list()) {
    RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(list->items.size())));
    items = list->items;
  } else if (const DictValue* dict = value.as_dict()) {
    RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(dict->entries().size())));
    for (const auto& entry : dict->entries()) items.push_back(Value::String(entry.first));
  } else if (const MarkedString* text = value.as_string()) {
    RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(text->size())));
    for (MarkedString& character : Characters(*text))
      items.push_back(Value::String(std::move(character)));
  } else if (!value.is_undefined()) {
    return TemplateError("a value of kind ", value.KindName(), " cannot be gone over");
  }
  return items;
}

absl::StatusOr<Value> Calculate(absl::string_view op, const Value& left, const Value& right,
                                Budget* budget) {
  int64_t a, b;
  if (ToInteger(left, &a) && ToInteger(right, &b)) return CalculateIntegers(op, a, b);
  const MarkedString* text = left.as_string();
  if (op == "+" && text && right.as_string()) {
    RETURN_IF_ERROR(budget->ChargeBytes(text->size() + right.as_string()->size()));
    MarkedString out = *text;
    out.Append(*right.as_string());
    return Value::String(std::move(out));
  }
  if (op == "+" && left.as_list() && right.as_list()) {
    std::vector<Value> items = left.as_list()->items;
    const auto& more = right.as_list()->items;
    items.insert(items.end(), more.begin(), more.end());
    return MakeList(std::move(items), budget);
  }
  if (op == "*" && text && ToInteger(right, &b)) return RepeatString(*text, b, budget);
  if (op == "*" && right.as_string() && ToInteger(left, &a))
    return RepeatString(*right.as_string(), a, budget);
  return NoOperator(op, left, right);
}

absl::StatusOr<Value> Negate(const Value& operand) {
  int64_t number;
  if (!ToInteger(operand, &number)) return TemplateError("unary - on ", operand.KindName());
  return CalculateIntegers("-", 0, number);
}

absl::StatusOr<bool> Compare(absl::string_view op, const Value& left, const Value& right,
                             Budget* budget) {
  if (op == "==" || op == "!=") {
    const bool equal = ValuesEqual(left, right, budget->steps_left());
    RETURN_IF_ERROR(budget->Check());
    return equal == (op == "==");
  }
  if (op == "in" || op == "not in") {
    ASSIGN_OR_RETURN(const bool contains, Contains(right, left, budget));
    return contains == (op == "in");
  }
  ASSIGN_OR_RETURN(const int order, Order(op, left, right, budget));
  if (op == "<") return order < 0;
  if (op == "<=") return order <= 0;
  if (op == ">") return order > 0;
  return order >= 0;
}

}  // namespace fixpoint
