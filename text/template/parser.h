// Source of a chat template -> syntax tree. What the interpreter does not know is refused here, by
// name and line.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "text/template/ast.h"

namespace fixpoint {

// Nesting of tags and of brackets, and height of an expression tree.
inline constexpr int kMaxTemplateNesting = 64;
inline constexpr int kMaxExpressionHeight = 200;

absl::StatusOr<TemplateTree> ParseTemplate(absl::string_view source);

}  // namespace fixpoint
