// The expressions of chat templates: Jinja's precedences.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

#include "text/template/ast.h"
#include "text/template/token_stream.h"

namespace fixpoint {

class ExpressionParser {
 public:
  // `tokens` must outlive this.
  explicit ExpressionParser(TokenStream* tokens) : tokens_(*tokens) {}

  // A whole expression, "a if b else c" included.
  absl::StatusOr<ExpressionPtr> Parse();
  // Without an inline if, as behind `in` of a for.
  absl::StatusOr<ExpressionPtr> ParseOr();

  // Functions called that are no built-in ones: the template must define a macro of that name.
  // (name, line)
  const std::vector<std::pair<std::string, int>>& macro_calls() const { return macro_calls_; }

 private:
  using Result = absl::StatusOr<ExpressionPtr>;
  Result ParseAnd();
  Result ParseNot();
  Result ParseCompare();
  Result ParseSum();
  Result ParseConcat();
  Result ParseProduct();
  Result ParseUnary(bool with_filters);
  Result ParsePrimary();
  Result ParsePostfix(ExpressionPtr object);
  Result ParseFiltersAndTests(ExpressionPtr input);
  Result ParseFilter(ExpressionPtr input);
  Result ParseTest(ExpressionPtr input);
  Result ParseAttribute(ExpressionPtr object);
  Result ParseSubscript(ExpressionPtr object);
  Result ParseList(absl::string_view close);
  Result ParseDict();
  Result ParseCall(int line, std::string name);
  Result ParseMethod(int line, ExpressionPtr object, std::string name);
  absl::Status ParseArguments(Expression* call);

  // Node over `args`; error when the tree gets too high.
  Result Make(ExpressionKind kind, int line, std::vector<ExpressionPtr> args,
              std::string name = "") const;
  Result Finish(ExpressionPtr node) const;

  TokenStream& tokens_;
  int nesting_ = 0;
  std::vector<std::pair<std::string, int>> macro_calls_;
};

}  // namespace fixpoint
