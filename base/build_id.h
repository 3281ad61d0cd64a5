// Which build of a program this is.
#pragma once

#include <string>

namespace fixpoint {

// The linker's build id of the running program (a hash over its content), hexadecimal; two builds
// of the same sources by the same tools have the same. Empty when it was linked without one.
std::string BuildId();

}  // namespace fixpoint
