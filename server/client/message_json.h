// Protobuf messages as readable JSON and back.
#pragma once

#include <simdjson.h>

#include <string>

#include "absl/status/status.h"
#include "base/json_writer.h"
#include "google/protobuf/message.h"

namespace fixpoint::client {

// One JSON object with the fields that are set, under their names in the .proto. `bytes` are
// written as text, so they must be valid UTF-8 (JsonWriter replaces what is not). Integers beyond
// 2^53 become strings, since many JSON readers would round them.
void WriteMessage(const google::protobuf::Message& message, JsonWriter* json);

// The reverse; *message must be empty. INVALID_ARGUMENT, naming the field's path, for an unknown or
// repeated field, a wrong type, a number out of range, an unknown enumerator.
absl::Status ReadMessage(simdjson::dom::element json, const std::string& path,
                         google::protobuf::Message* message);

}  // namespace fixpoint::client
