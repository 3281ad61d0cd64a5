// What a caller asks an answer to look like, before anything is compiled.
#pragma once

#include <cstdint>
#include <string>

namespace fixpoint {

// The numbers are part of receipts: never change them.
enum class ConstraintKind : uint8_t { kNone = 0, kJsonSchema = 1, kRegex = 2, kJsonObject = 3 };

struct ConstraintSpec {
  ConstraintKind kind = ConstraintKind::kNone;
  std::string text;  // of kJsonSchema and kRegex; else empty
};

}  // namespace fixpoint
