// Values as text: Python's str() and repr(), and JSON as json.dumps writes it.
#pragma once

#include <string>

#include "absl/status/statusor.h"

#include "text/template/budget.h"
#include "text/template/value.h"

namespace fixpoint {

// str(value): what {{ value }} prints. Strings keep their marks; all else is untrusted.
absl::StatusOr<MarkedString> ToText(const Value& value, Budget* budget);

struct JsonOptions {
  bool ensure_ascii = false;
  bool sort_keys = false;
  int indent = -1;  // < 0: all on one line
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
absl::StatusOr<std::string> ToJson(const Value& value, const JsonOptions& options, Budget* budget);

// A double as Python's repr() prints it: the shortest digits that read back the same.
std::string PythonFloat(double value);

}  // namespace fixpoint
