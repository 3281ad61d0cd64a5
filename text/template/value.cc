#include "text/template/value.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace fixpoint {

Value Value::List(std::vector<Value> items, bool tuple) {
  auto list = std::make_shared<ListValue>();
  list->tuple = tuple;
  for (const Value& item : items) list->depth = std::max(list->depth, 1 + item.Depth());
  list->items = std::move(items);
  return Value(Storage(std::shared_ptr<const ListValue>(std::move(list))));
}

Value Value::Dict(DictValue dict) {
  return Value(Storage(std::make_shared<const DictValue>(std::move(dict))));
}

Value Value::Namespace() { return Value(Storage(std::make_shared<NamespaceValue>())); }

Value Value::Loop(LoopValue loop) {
  return Value(Storage(std::make_shared<const LoopValue>(std::move(loop))));
}

absl::string_view Value::KindName() const {
  static constexpr absl::string_view kNames[] = {"undefined", "none",   "boolean", "integer",
                                                 "float",     "string", "list",    "dict",
                                                 "namespace", "loop",   "function"};
  static_assert(std::variant_size_v<Storage> == std::size(kNames));
  return kNames[storage_.index()];
}

bool Value::Truthy() const {
  if (is_undefined() || is_none()) return false;
  if (const bool* flag = as_bool()) return *flag;
  if (const int64_t* number = as_int()) return *number != 0;
  if (const std::string* number = as_number_text()) return *number != "0.0" && *number != "-0.0";
  if (const MarkedString* text = as_string()) return !text->empty();
  if (const ListValue* list = as_list()) return !list->items.empty();
  if (const DictValue* dict = as_dict()) return !dict->entries().empty();
  return true;
}

int Value::Depth() const {
  if (const ListValue* list = as_list()) return list->depth;
  if (const DictValue* dict = as_dict()) return dict->depth();
  return 0;
}

void DictValue::Set(absl::string_view key, Value value) {
  depth_ = std::max(depth_, 1 + value.Depth());
  const auto [place, inserted] = index_.emplace(std::string(key), entries_.size());
  if (inserted) {
    entries_.emplace_back(std::string(key), std::move(value));
  } else {
    entries_[place->second].second = std::move(value);
  }
}

const Value* DictValue::Find(absl::string_view key) const {
  const auto found = index_.find(key);
  return found == index_.end() ? nullptr : &entries_[found->second].second;
}

bool ValuesEqual(const Value& a, const Value& b, int64_t* steps_left) {
  if (--*steps_left < 0) return false;
  auto as_integer = [](const Value& v, int64_t* out) {
    if (const int64_t* number = v.as_int())
      *out = *number;
    else if (const bool* flag = v.as_bool())
      *out = *flag ? 1 : 0;
    else
      return false;
    return true;
  };
  int64_t x, y;
  if (as_integer(a, &x) && as_integer(b, &y)) return x == y;
  if (a.as_number_text() && b.as_number_text()) return *a.as_number_text() == *b.as_number_text();
  // 1 == 1.0 holds in Python.
  if (a.as_number_text() && as_integer(b, &y)) return *a.as_number_text() == absl::StrCat(y, ".0");
  if (b.as_number_text() && as_integer(a, &x)) return *b.as_number_text() == absl::StrCat(x, ".0");
  if (a.as_string() && b.as_string()) {
    *steps_left -=
        static_cast<int64_t>(std::min(a.as_string()->size(), b.as_string()->size()) / 64);
    return a.as_string()->text() == b.as_string()->text();
  }
  if (a.is_none() || a.is_undefined()) return a.KindName() == b.KindName();
  if (a.as_list() && b.as_list()) {
    const auto& left = a.as_list()->items;
    const auto& right = b.as_list()->items;
    if (left.size() != right.size() || a.as_list()->tuple != b.as_list()->tuple) return false;
    for (size_t i = 0; i < left.size(); ++i) {
      if (!ValuesEqual(left[i], right[i], steps_left)) return false;
    }
    return true;
  }
  if (a.as_dict() && b.as_dict()) {
    if (a.as_dict()->entries().size() != b.as_dict()->entries().size()) return false;
    for (const auto& [key, value] : a.as_dict()->entries()) {
      const Value* other = b.as_dict()->Find(key);
      if (other == nullptr || !ValuesEqual(value, *other, steps_left)) return false;
    }
    return true;
  }
  if (a.as_namespace() && b.as_namespace()) return a.as_namespace() == b.as_namespace();
  return false;
}

}  // namespace fixpoint
