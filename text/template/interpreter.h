// Walks the syntax tree of a chat template once.
#pragma once

#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"

#include "text/template/ast.h"
#include "text/template/budget.h"
#include "text/template/builtins.h"
#include "text/template/chat_template.h"

namespace fixpoint {

class Interpreter {
 public:
  // All three must outlive this.
  Interpreter(const TemplateTree& tree, const DictValue& variables, const RenderOptions& options);

  // Call it once.
  absl::StatusOr<MarkedString> Run();

 private:
  // The names set in one place; reading goes on to the parent. An `if` opens none.
  struct Scope {
    Scope* parent;
    absl::flat_hash_map<std::string, Value> names;
  };
  enum class Flow { kNormal, kBreak, kContinue };

  absl::StatusOr<Flow> Execute(const Body& body, Scope* scope);
  absl::StatusOr<Flow> ExecuteStatement(const Statement& statement, Scope* scope);
  absl::StatusOr<Flow> ExecuteIf(const Statement& statement, Scope* scope);
  absl::StatusOr<Flow> ExecuteFor(const Statement& statement, Scope* scope);
  absl::Status ExecuteSet(const Statement& statement, Scope* scope);
  // Gives `value` to the targets, one by one from a list where there are several.
  absl::Status Assign(const std::vector<std::string>& targets, const Value& value, Scope* scope);
  // Output of `body` as a value instead of on the page.
  absl::StatusOr<Value> Capture(const Body& body, Scope* scope);
  absl::Status Print(const MarkedString& text);

  absl::StatusOr<Value> Evaluate(const Expression& expression, Scope* scope);
  absl::StatusOr<Value> EvaluateNode(const Expression& expression, Scope* scope);
  absl::StatusOr<Value> EvaluateDict(const Expression& expression, Scope* scope);
  absl::StatusOr<Value> EvaluateCompare(const Expression& expression, Scope* scope);
  absl::StatusOr<Value> EvaluateSlice(const Expression& expression, Scope* scope);
  absl::StatusOr<Value> EvaluateConcat(const Expression& expression, Scope* scope);
  absl::StatusOr<Value> EvaluateCall(const Expression& expression, Scope* scope);
  // The arguments from args[first] on.
  absl::StatusOr<Arguments> EvaluateArguments(const Expression& expression, size_t first,
                                              Scope* scope);
  absl::StatusOr<Value> CallMacro(const MacroDefinition& macro, const Arguments& arguments);
  absl::StatusOr<Value> CallFunction(const std::string& name, const Arguments& arguments);
  Value Lookup(const std::string& name, const Scope* scope) const;

  const TemplateTree& tree_;
  const DictValue& variables_;
  const RenderOptions& options_;
  Budget budget_;
  Scope top_{nullptr, {}};
  MarkedString page_;
  int macro_depth_ = 0;
  int frames_ = 0;  // of our own recursion
};

}  // namespace fixpoint
