#include "text/template/messages_json.h"

#include <simdjson.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

#include "base/check.h"
#include "base/status_macros.h"
#include "text/template/format.h"

namespace fixpoint {
namespace {

constexpr size_t kMaxJsonBytes = 16u << 20;

// The element as a T. Requires that its type says so.
template <typename T>
T As(const simdjson::dom::element& element) {
  T value{};
  const simdjson::error_code error = element.get(value);
  CHECK(!error) << simdjson::error_message(error);
  return value;
}

// Depth is bounded by the parser.
Value Convert(const simdjson::dom::element& element) {
  using Type = simdjson::dom::element_type;
  switch (element.type()) {
    case Type::NULL_VALUE:
      return Value::MakeNone();
    case Type::BOOL:
      return Value::Bool(As<bool>(element));
    case Type::INT64:
      return Value::Int(As<int64_t>(element));
    case Type::UINT64:
      return Value::Number(absl::StrCat(As<uint64_t>(element)));
    case Type::DOUBLE:
      return Value::Number(PythonFloat(As<double>(element)));
    case Type::STRING:
      return Value::String(std::string(As<std::string_view>(element)));
    case Type::ARRAY: {
      std::vector<Value> items;
      const auto array = As<simdjson::dom::array>(element);
      for (const simdjson::dom::element& item : array) items.push_back(Convert(item));
      return Value::List(std::move(items));
    }
    case Type::OBJECT: {
      DictValue dict;
      const auto object = As<simdjson::dom::object>(element);
      for (const auto& [key, value] : object) {
        dict.Set(absl::string_view(key.data(), key.size()), Convert(value));
      }
      return Value::Dict(std::move(dict));
    }
  }
  return Value();
}

absl::StatusOr<Value> ListOfObjects(absl::string_view what, absl::string_view json) {
  absl::StatusOr<Value> value = ValueFromJson(json);
  if (!value.ok()) return Annotate(value.status(), what);
  if (!value->as_list()) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": must be an array, is ", value->KindName()));
  }
  const auto& items = value->as_list()->items;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!items[i].as_dict()) {
      return absl::InvalidArgumentError(
          absl::StrCat(what, "[", i, "]: must be an object, is ", items[i].KindName()));
    }
  }
  return value;
}

}  // namespace

absl::StatusOr<Value> ValueFromJson(absl::string_view json) {
  if (json.size() > kMaxJsonBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("JSON of ", json.size(), " bytes is over the limit of ", kMaxJsonBytes));
  }
  simdjson::dom::parser parser;
  simdjson::dom::element root;
  simdjson::error_code error = parser.allocate(json.size() + 1, kMaxJsonDepth);
  if (!error) error = parser.parse(json.data(), json.size()).get(root);
  if (error == simdjson::DEPTH_ERROR) {
    return absl::InvalidArgumentError(absl::StrCat("JSON nests over ", kMaxJsonDepth, " deep"));
  }
  if (error)
    return absl::InvalidArgumentError(absl::StrCat("JSON: ", simdjson::error_message(error)));
  return Convert(root);
}

absl::StatusOr<Value> ChatMessagesFromJson(absl::string_view json) {
  ASSIGN_OR_RETURN(Value messages, ListOfObjects("messages", json));
  const auto& items = messages.as_list()->items;
  for (size_t i = 0; i < items.size(); ++i) {
    const Value* role = items[i].as_dict()->Find("role");
    if (role == nullptr || !role->as_string()) {
      return absl::InvalidArgumentError(absl::StrCat("messages[", i, "]: needs a string \"role\""));
    }
  }
  return messages;
}

absl::StatusOr<Value> ChatToolsFromJson(absl::string_view json) {
  return ListOfObjects("tools", json);
}

}  // namespace fixpoint
