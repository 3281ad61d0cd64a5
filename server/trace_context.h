// W3C Trace Context, as far as logs need it.
#pragma once

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace fixpoint {

struct TraceContext {
  std::string trace_id;   // 32 lower-case hexadecimal digits, not all zero
  std::string parent_id;  // 16 of them, not all zero
};

// Reads a `traceparent` header. nullopt for anything that the standard does not allow: such a
// header is ignored, never an error of the call. Versions above 00 may carry more fields behind a
// dash.
std::optional<TraceContext> ParseTraceparent(absl::string_view header);

}  // namespace fixpoint
