// The operators of templates on values: Python's meaning, errors where Python raises.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "text/template/budget.h"
#include "text/template/value.h"

namespace fixpoint {

template <typename... Parts>
absl::Status TemplateError(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("chat template: ", parts...));
}

// Lists and dicts made while rendering: checks the depth limit, and that no namespace gets inside.
absl::StatusOr<Value> MakeList(std::vector<Value> items, Budget* budget, bool tuple = false);
absl::StatusOr<Value> MakeDict(DictValue dict, Budget* budget);
absl::StatusOr<Value> MakeStringList(std::vector<MarkedString> parts, Budget* budget);

// object.name and object[key]. Undefined when there is nothing there; an error on an undefined
// object.
absl::StatusOr<Value> GetAttribute(const Value& object, absl::string_view name);
absl::StatusOr<Value> GetItem(const Value& object, const Value& key, Budget* budget);
// object[start:stop:step]; null pointers for parts left out.
absl::StatusOr<Value> GetSlice(const Value& object, const Value* start, const Value* stop,
                               const Value* step, Budget* budget);

// What a for goes over: items, keys, characters; nothing for undefined.
absl::StatusOr<std::vector<Value>> Iterate(const Value& value, Budget* budget);

// op: + - * // %
absl::StatusOr<Value> Calculate(absl::string_view op, const Value& left, const Value& right,
                                Budget* budget);
absl::StatusOr<Value> Negate(const Value& operand);
// op: == != < <= > >= in "not in"
absl::StatusOr<bool> Compare(absl::string_view op, const Value& left, const Value& right,
                             Budget* budget);

// Integer value of an int or bool.
bool ToInteger(const Value& value, int64_t* out);

}  // namespace fixpoint
