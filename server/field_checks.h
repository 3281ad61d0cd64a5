// The refusals that all request fields share. Each is INVALID_ARGUMENT and names field, limit and
// value; a text itself never goes into a message.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/repeated_field.h"

namespace fixpoint {

absl::Status OutOfRange(absl::string_view field, absl::string_view limit, absl::string_view value);

// Valid UTF-8 without NUL.
absl::Status CheckText(absl::string_view field, absl::string_view text);

absl::Status CheckBytes(absl::string_view field, size_t bytes, size_t least, size_t most);

// Token ids below vocab_size.
absl::StatusOr<std::vector<int32_t>> CheckedIds(
    absl::string_view field, const google::protobuf::RepeatedField<uint32_t>& ids,
    int32_t vocab_size);

}  // namespace fixpoint
