// JSON -> the values that a chat template reads.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "text/template/value.h"

namespace fixpoint {

inline constexpr size_t kMaxJsonDepth = 64;

// Any JSON text (up to 16 MiB) as a value; all strings are untrusted. Integers beyond int64 and
// fractions keep the text that Python would print.
absl::StatusOr<Value> ValueFromJson(absl::string_view json);

// `messages`: a JSON array of objects that each have a string "role". Names the first message that
// is wrong.
absl::StatusOr<Value> ChatMessagesFromJson(absl::string_view json);

// `tools`: a JSON array of objects.
absl::StatusOr<Value> ChatToolsFromJson(absl::string_view json);

}  // namespace fixpoint
