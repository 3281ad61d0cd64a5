#include "server/client/message_json.h"

#include <limits>
#include <set>
#include <string_view>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace fixpoint::client {
namespace {

using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr uint64_t kExactDouble = uint64_t{1} << 53;

// -1: the field is not repeated.
template <typename Single, typename Repeated>
auto Pick(int index, Single single, Repeated repeated) {
  return index < 0 ? single() : repeated();
}

void WriteUnsigned(uint64_t value, JsonWriter* json) {
  if (value > kExactDouble) {
    json->String(absl::StrCat(value));
  } else {
    json->Uint(value);
  }
}

void WriteSigned(int64_t value, JsonWriter* json) {
  const bool exact =
      value >= -static_cast<int64_t>(kExactDouble) && value <= static_cast<int64_t>(kExactDouble);
  if (exact) {
    json->Int(value);
  } else {
    json->String(absl::StrCat(value));
  }
}

#define FIXPOINT_GET(Type)                                          \
  Pick(                                                             \
      index, [&] { return reflection->Get##Type(message, field); }, \
      [&] { return reflection->GetRepeated##Type(message, field, index); })

void WriteValue(const Message& message, const FieldDescriptor* field, int index, JsonWriter* json) {
  const Reflection* reflection = message.GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL:
      return json->Bool(FIXPOINT_GET(Bool));
    case FieldDescriptor::CPPTYPE_INT32:
      return WriteSigned(FIXPOINT_GET(Int32), json);
    case FieldDescriptor::CPPTYPE_INT64:
      return WriteSigned(FIXPOINT_GET(Int64), json);
    case FieldDescriptor::CPPTYPE_UINT32:
      return WriteUnsigned(FIXPOINT_GET(UInt32), json);
    case FieldDescriptor::CPPTYPE_UINT64:
      return WriteUnsigned(FIXPOINT_GET(UInt64), json);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return json->Double(FIXPOINT_GET(Double));
    case FieldDescriptor::CPPTYPE_FLOAT:
      return json->Double(FIXPOINT_GET(Float));
    case FieldDescriptor::CPPTYPE_STRING:
      return json->String(FIXPOINT_GET(String));
    case FieldDescriptor::CPPTYPE_ENUM:
      return json->String(FIXPOINT_GET(Enum)->name());
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return WriteMessage(index < 0 ? reflection->GetMessage(message, field)
                                    : reflection->GetRepeatedMessage(message, field, index),
                          json);
  }
}
#undef FIXPOINT_GET

absl::Status Wrong(const std::string& path, absl::string_view wanted) {
  return absl::InvalidArgumentError(absl::StrCat("'", path, "' must be ", wanted));
}

// A JSON integer, or one as a string.
template <typename T>
absl::StatusOr<T> ReadInteger(simdjson::dom::element json, const std::string& path) {
  using Wide = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
  Wide wide = 0;
  std::string_view text;
  const bool read = json.get(wide) == simdjson::SUCCESS ||
                    (json.get(text) == simdjson::SUCCESS &&
                     absl::SimpleAtoi(absl::string_view(text.data(), text.size()), &wide));
  if (!read || wide < std::numeric_limits<T>::min() || wide > std::numeric_limits<T>::max()) {
    return Wrong(path, absl::StrCat(std::is_signed_v<T> ? "an integer of " : "a natural number of ",
                                    8 * sizeof(T), " bits"));
  }
  return static_cast<T>(wide);
}

absl::StatusOr<double> ReadDouble(simdjson::dom::element json, const std::string& path) {
  double value = 0;
  if (json.get(value) != simdjson::SUCCESS) return Wrong(path, "a number");
  return value;
}

absl::StatusOr<bool> ReadBool(simdjson::dom::element json, const std::string& path) {
  bool value = false;
  if (json.get(value) != simdjson::SUCCESS) return Wrong(path, "true or false");
  return value;
}

absl::StatusOr<std::string> ReadString(simdjson::dom::element json, const std::string& path) {
  std::string_view value;
  if (json.get(value) != simdjson::SUCCESS) return Wrong(path, "a string");
  return std::string(value);
}

absl::StatusOr<const EnumValueDescriptor*> ReadEnum(simdjson::dom::element json,
                                                    const FieldDescriptor* field,
                                                    const std::string& path) {
  ASSIGN_OR_RETURN(const std::string name, ReadString(json, path));
  const EnumValueDescriptor* value = field->enum_type()->FindValueByName(name);
  if (value == nullptr) {
    return Wrong(path, absl::StrCat("a name of ", field->enum_type()->name(), ", is '", name, "'"));
  }
  return value;
}

#define FIXPOINT_SET(Type, reader)                  \
  {                                                 \
    ASSIGN_OR_RETURN(auto value, reader);           \
    if (field->is_repeated()) {                     \
      reflection->Add##Type(message, field, value); \
    } else {                                        \
      reflection->Set##Type(message, field, value); \
    }                                               \
    return absl::OkStatus();                        \
  }

absl::Status ReadValue(simdjson::dom::element json, const std::string& path,
                       const FieldDescriptor* field, Message* message) {
  const Reflection* reflection = message->GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL:
      FIXPOINT_SET(Bool, ReadBool(json, path));
    case FieldDescriptor::CPPTYPE_INT32:
      FIXPOINT_SET(Int32, ReadInteger<int32_t>(json, path));
    case FieldDescriptor::CPPTYPE_INT64:
      FIXPOINT_SET(Int64, ReadInteger<int64_t>(json, path));
    case FieldDescriptor::CPPTYPE_UINT32:
      FIXPOINT_SET(UInt32, ReadInteger<uint32_t>(json, path));
    case FieldDescriptor::CPPTYPE_UINT64:
      FIXPOINT_SET(UInt64, ReadInteger<uint64_t>(json, path));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      FIXPOINT_SET(Double, ReadDouble(json, path));
    case FieldDescriptor::CPPTYPE_FLOAT:
      FIXPOINT_SET(Float, ReadDouble(json, path));
    case FieldDescriptor::CPPTYPE_STRING:
      FIXPOINT_SET(String, ReadString(json, path));
    case FieldDescriptor::CPPTYPE_ENUM:
      FIXPOINT_SET(Enum, ReadEnum(json, field, path));
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return ReadMessage(json, path,
                         field->is_repeated() ? reflection->AddMessage(message, field)
                                              : reflection->MutableMessage(message, field));
  }
  return Wrong(path, "of a known type");
}
#undef FIXPOINT_SET

absl::Status ReadField(simdjson::dom::element json, const std::string& path,
                       const FieldDescriptor* field, Message* message) {
  if (!field->is_repeated()) {
    if (const auto* oneof = field->real_containing_oneof();
        oneof != nullptr && message->GetReflection()->HasOneof(*message, oneof)) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", path, "': only one of the kinds of ", oneof->name(), " may be set"));
    }
    return ReadValue(json, path, field, message);
  }
  simdjson::dom::array array;
  if (json.get(array) != simdjson::SUCCESS) return Wrong(path, "an array");
  size_t i = 0;
  for (const simdjson::dom::element item : array) {
    RETURN_IF_ERROR(ReadValue(item, absl::StrCat(path, "[", i++, "]"), field, message));
  }
  return absl::OkStatus();
}

}  // namespace

void WriteMessage(const Message& message, JsonWriter* json) {
  std::vector<const FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  json->BeginObject();
  for (const FieldDescriptor* field : fields) {
    json->Key(field->name());
    if (!field->is_repeated()) {
      WriteValue(message, field, -1, json);
      continue;
    }
    json->BeginArray();
    for (int i = 0; i < message.GetReflection()->FieldSize(message, field); ++i) {
      WriteValue(message, field, i, json);
    }
    json->EndArray();
  }
  json->EndObject();
}

// As deep as the messages nest, whatever the text says: an unknown field is never entered.
absl::Status ReadMessage(simdjson::dom::element json, const std::string& path, Message* message) {
  simdjson::dom::object object;
  if (json.get(object) != simdjson::SUCCESS) return Wrong(path, "an object");
  std::set<const FieldDescriptor*> seen;
  for (const simdjson::dom::key_value_pair entry : object) {
    const std::string name(entry.key);
    const std::string field_path = absl::StrCat(path, ".", name);
    const FieldDescriptor* field = message->GetDescriptor()->FindFieldByName(name);
    if (field == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("'", field_path, "' is unknown"));
    }
    if (!seen.insert(field).second) {
      return absl::InvalidArgumentError(absl::StrCat("'", field_path, "' stands twice"));
    }
    RETURN_IF_ERROR(ReadField(entry.value, field_path, field, message));
  }
  return absl::OkStatus();
}

}  // namespace fixpoint::client
