// Refuses requests with fields that this server does not know.
#pragma once

#include "absl/status/status.h"
#include "google/protobuf/message.h"

namespace fixpoint {

// INVALID_ARGUMENT naming message and field number when `message` or any message inside it holds an
// unknown field; protobuf keeps such fields, so an option of a newer client would otherwise be
// ignored in silence.
absl::Status RefuseUnknownFields(const google::protobuf::Message& message);

}  // namespace fixpoint
