// Filters, tests and methods of templates (the names in signatures.cc), as Jinja 3.1 and Python
// define them.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "text/template/budget.h"
#include "text/template/value.h"

namespace fixpoint {

// Index for Arguments::Get of an argument that is only ever given by name.
inline constexpr size_t kNoPosition = static_cast<size_t>(-1);

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // The argument at `index` or of that name, or null.
  const Value* Get(size_t index, absl::string_view name) const;
};

// The parser has checked name and number of arguments.
absl::StatusOr<Value> ApplyFilter(absl::string_view name, const Value& input,
                                  const Arguments& arguments, Budget* budget);
absl::StatusOr<bool> ApplyTest(absl::string_view name, const Value& input,
                               const std::vector<Value>& arguments, Budget* budget);
absl::StatusOr<Value> CallMethod(absl::string_view name, const Value& object,
                                 const Arguments& arguments, Budget* budget);

}  // namespace fixpoint
