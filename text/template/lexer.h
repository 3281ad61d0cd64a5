// Jinja source to tokens, with trim_blocks and lstrip_blocks on, as Hugging Face sets them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fixpoint {

enum class TokenKind : uint8_t {
  kData,        // text: output outside of tags
  kBlockBegin,  // {%
  kBlockEnd,
  kOutputBegin,  // {{
  kOutputEnd,
  kName,      // text
  kString,    // text, escapes undone
  kInteger,   // number
  kOperator,  // text
  kEnd,
};

struct TemplateToken {
  TokenKind kind;
  int line;  // 1-based
  std::string text;
  int64_t number = 0;
};

inline constexpr size_t kMaxTemplateBytes = 1 << 20;

// Ends with one kEnd token. White space is already trimmed from kData as the signs and options
// demand. Errors name the line.
absl::StatusOr<std::vector<TemplateToken>> LexTemplate(absl::string_view source);

}  // namespace fixpoint
