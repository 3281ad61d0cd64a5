// Early returns for absl::Status and absl::StatusOr, which Abseil 20220623 (Debian 12) does not
// bring itself.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

#define FIXPOINT_CONCAT_INNER(a, b) a##b
#define FIXPOINT_CONCAT(a, b) FIXPOINT_CONCAT_INNER(a, b)

// Returns the status of `expression` from the enclosing function unless it is OK.
#define RETURN_IF_ERROR(expression)                                                 \
  do {                                                                              \
    if (absl::Status status_macro_value = (expression); !status_macro_value.ok()) { \
      return status_macro_value;                                                    \
    }                                                                               \
  } while (false)

// Moves the value of a StatusOr into `left`, which may declare a variable, or returns its status.
#define ASSIGN_OR_RETURN(left, expression) \
  ASSIGN_OR_RETURN_INNER(FIXPOINT_CONCAT(status_or_, __LINE__), left, expression)
#define ASSIGN_OR_RETURN_INNER(name, left, expression) \
  auto name = (expression);                            \
  if (!name.ok()) return std::move(name).status();     \
  left = std::move(name).value()

namespace fixpoint {

// The same status code with "context: " in front of the message. OK stays OK.
inline absl::Status Annotate(const absl::Status& status, absl::string_view context) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(context, ": ", status.message()));
}

}  // namespace fixpoint
