// Names and arguments of the filters, tests, methods and functions that templates may use. The
// parser checks calls against this table, the interpreter carries them out.
#pragma once

#include <vector>

#include "absl/strings/string_view.h"

namespace fixpoint {

struct Signature {
  absl::string_view name;
  int min_args;  // positional, without the input or object
  int max_args;
  std::vector<absl::string_view>
      keywords;  // names of the arguments, positional ones first in their order
};

// Null when there is none of that name. Thread-safe.
const Signature* FindFilter(absl::string_view name);
const Signature* FindTest(absl::string_view name);
const Signature* FindMethod(absl::string_view name);
const Signature* FindFunction(absl::string_view name);

// Attributes of the variable `loop`.
bool IsLoopAttribute(absl::string_view name);

}  // namespace fixpoint
