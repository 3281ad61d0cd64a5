// The parser's view of the tokens, shared by its two halves.
#pragma once

#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

#include "text/template/lexer.h"

namespace fixpoint {

class TokenStream {
 public:
  explicit TokenStream(std::vector<TemplateToken> tokens) : tokens_(std::move(tokens)) {}

  // The kEnd token is never passed.
  const TemplateToken& Peek(size_t ahead = 0) const {
    const size_t last = tokens_.size() - 1;
    return tokens_[position_ + ahead < last ? position_ + ahead : last];
  }
  const TemplateToken& Next() {
    const TemplateToken& token = Peek();
    if (position_ + 1 < tokens_.size()) ++position_;
    return token;
  }
  bool Is(TokenKind kind, absl::string_view text, size_t ahead = 0) const {
    return Peek(ahead).kind == kind && Peek(ahead).text == text;
  }
  bool IsOperator(absl::string_view text, size_t ahead = 0) const {
    return Is(TokenKind::kOperator, text, ahead);
  }
  bool IsName(absl::string_view text, size_t ahead = 0) const {
    return Is(TokenKind::kName, text, ahead);
  }
  bool TakeOperator(absl::string_view text) { return IsOperator(text) && (Next(), true); }
  bool TakeName(absl::string_view text) { return IsName(text) && (Next(), true); }

  template <typename... Parts>
  absl::Status Error(const Parts&... parts) const {
    return ErrorAt(Peek().line, parts...);
  }
  template <typename... Parts>
  static absl::Status ErrorAt(int line, const Parts&... parts) {
    return absl::InvalidArgumentError(absl::StrCat("chat template, line ", line, ": ", parts...));
  }
  absl::Status Expect(absl::string_view op) {
    return TakeOperator(op) ? absl::OkStatus() : Error("expected '", op, "', found ", Describe());
  }
  // What stands next, for messages.
  std::string Describe() const {
    const TemplateToken& token = Peek();
    switch (token.kind) {
      case TokenKind::kData:
        return "text";
      case TokenKind::kBlockBegin:
        return "{%";
      case TokenKind::kBlockEnd:
        return "%}";
      case TokenKind::kOutputBegin:
        return "{{";
      case TokenKind::kOutputEnd:
        return "}}";
      case TokenKind::kString:
        return "a string";
      case TokenKind::kInteger:
        return absl::StrCat(token.number);
      case TokenKind::kEnd:
        return "the end of the template";
      default:
        return absl::StrCat("'", token.text, "'");
    }
  }

 private:
  std::vector<TemplateToken> tokens_;
  size_t position_ = 0;
};

}  // namespace fixpoint
