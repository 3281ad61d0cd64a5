#include "text/template/interpreter.h"

#include <algorithm>
#include <ctime>
#include <utility>

#include "base/status_macros.h"
#include "text/template/format.h"
#include "text/template/operators.h"
#include "text/template/signatures.h"
#include "text/template/strings.h"
#include "text/utf8.h"

namespace fixpoint {
namespace {

// Expressions and tags inside of each other, macros included. A frame is under 2 KiB, so this stays
// within 2 MiB of stack.
constexpr int kMaxFrames = 800;
constexpr int64_t kMaxRange = 10'000;

class FrameGuard {
 public:
  explicit FrameGuard(int* frames) : frames_(frames) { ++*frames_; }
  ~FrameGuard() { --*frames_; }

 private:
  int* frames_;
};

absl::Status TooDeep() {
  return absl::ResourceExhaustedError(
      absl::StrCat("chat template is over ", kMaxFrames, " calls deep"));
}

// Says where, once: errors from inner nodes already carry a line. raise_exception must stay as the
// template wrote it, so its status is told apart by a payload.
constexpr absl::string_view kRaised = "fixpoint/raise_exception";

absl::Status AtLine(const absl::Status& status, int line) {
  if (status.GetPayload(kRaised)) return status;
  if (status.message().find(", line ") != absl::string_view::npos) return status;
  return absl::Status(status.code(), absl::StrCat(status.message(), ", line ", line));
}

absl::StatusOr<Value> Range(const Arguments& arguments, Budget* budget) {
  int64_t bounds[3] = {0, 0, 1};
  for (size_t i = 0; i < arguments.positional.size(); ++i) {
    if (!ToInteger(arguments.positional[i], &bounds[i]))
      return TemplateError("range() takes integers");
  }
  if (arguments.positional.size() == 1) std::swap(bounds[0], bounds[1]);
  const auto [start, stop, step] = bounds;
  if (step == 0) return TemplateError("range() with step 0");
  std::vector<Value> items;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (static_cast<int64_t>(items.size()) >= kMaxRange) {
      return absl::ResourceExhaustedError(
          absl::StrCat("chat template: range() of over ", kMaxRange, " items"));
    }
    items.push_back(Value::Int(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return MakeList(std::move(items), budget);
}

absl::StatusOr<Value> FormatNow(const Value& format, const std::tm& now) {
  if (!format.as_string()) return TemplateError("strftime_now() takes a string");
  const std::string& text = format.as_string()->text();
  if (text.empty()) return Value::String("");
  char buffer[512];
  const size_t size = std::strftime(buffer, sizeof buffer, text.c_str(), &now);
  if (size == 0)
    return TemplateError("strftime_now() gives nothing, or over ", sizeof buffer, " bytes");
  return Value::String(std::string(buffer, size));
}

}  // namespace

Interpreter::Interpreter(const TemplateTree& tree, const DictValue& variables,
                         const RenderOptions& options)
    : tree_(tree),
      variables_(variables),
      options_(options),
      budget_(options.max_steps, options.max_depth) {}

absl::StatusOr<MarkedString> Interpreter::Run() {
  const absl::StatusOr<Flow> flow = Execute(tree_.body, &top_);
  if (!flow.ok()) return flow.status();
  return std::move(page_);
}

// --- Statements ---

absl::StatusOr<Interpreter::Flow> Interpreter::Execute(const Body& body, Scope* scope) {
  const FrameGuard guard(&frames_);
  if (frames_ > kMaxFrames) return TooDeep();
  for (const Statement& statement : body) {
    RETURN_IF_ERROR(budget_.Charge(1));
    absl::StatusOr<Flow> flow = ExecuteStatement(statement, scope);
    if (!flow.ok()) return AtLine(flow.status(), statement.line);
    if (*flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

absl::StatusOr<Interpreter::Flow> Interpreter::ExecuteStatement(const Statement& statement,
                                                                Scope* scope) {
  switch (statement.kind) {
    case StatementKind::kText:
      RETURN_IF_ERROR(budget_.ChargeBytes(statement.text.as_string()->size()));
      RETURN_IF_ERROR(Print(*statement.text.as_string()));
      return Flow::kNormal;
    case StatementKind::kOutput: {
      ASSIGN_OR_RETURN(const Value value, Evaluate(*statement.value, scope));
      ASSIGN_OR_RETURN(const MarkedString text, ToText(value, &budget_));
      RETURN_IF_ERROR(Print(text));
      return Flow::kNormal;
    }
    case StatementKind::kIf:
      return ExecuteIf(statement, scope);
    case StatementKind::kFor:
      return ExecuteFor(statement, scope);
    case StatementKind::kSet:
      RETURN_IF_ERROR(ExecuteSet(statement, scope));
      return Flow::kNormal;
    case StatementKind::kSetBlock: {
      ASSIGN_OR_RETURN(const Value value, Capture(statement.body, scope));
      scope->names[statement.targets[0]] = value;
      return Flow::kNormal;
    }
    case StatementKind::kMacro:
      scope->names[statement.targets[0]] = Value::Function(statement.macro);
      return Flow::kNormal;
    case StatementKind::kBreak:
      return Flow::kBreak;
    case StatementKind::kContinue:
      return Flow::kContinue;
    case StatementKind::kGroup:
      return Execute(statement.body, scope);
  }
  return TemplateError("unknown statement");
}

absl::StatusOr<Interpreter::Flow> Interpreter::ExecuteIf(const Statement& statement, Scope* scope) {
  for (const auto& [condition, body] : statement.branches) {
    ASSIGN_OR_RETURN(const Value value, Evaluate(*condition, scope));
    if (value.Truthy()) return Execute(body, scope);
  }
  return Execute(statement.otherwise, scope);
}

absl::StatusOr<Interpreter::Flow> Interpreter::ExecuteFor(const Statement& statement,
                                                          Scope* scope) {
  ASSIGN_OR_RETURN(const Value iterated, Evaluate(*statement.value, scope));
  ASSIGN_OR_RETURN(std::vector<Value> all, Iterate(iterated, &budget_));
  Scope inner{scope, {}};
  if (statement.condition) {
    std::vector<Value> kept;
    for (Value& item : all) {
      inner.names.clear();
      RETURN_IF_ERROR(Assign(statement.targets, item, &inner));
      ASSIGN_OR_RETURN(const Value condition, Evaluate(*statement.condition, &inner));
      if (condition.Truthy()) kept.push_back(std::move(item));
    }
    all = std::move(kept);
  }
  if (all.empty()) return Execute(statement.otherwise, scope);
  const auto items = std::make_shared<const std::vector<Value>>(std::move(all));
  for (size_t i = 0; i < items->size(); ++i) {
    inner.names.clear();
    RETURN_IF_ERROR(budget_.Charge(1));
    RETURN_IF_ERROR(Assign(statement.targets, (*items)[i], &inner));
    inner.names["loop"] = Value::Loop({static_cast<int64_t>(i), items});
    ASSIGN_OR_RETURN(const Flow flow, Execute(statement.body, &inner));
    if (flow == Flow::kBreak) break;
  }
  return Flow::kNormal;
}

absl::Status Interpreter::ExecuteSet(const Statement& statement, Scope* scope) {
  ASSIGN_OR_RETURN(const Value value, Evaluate(*statement.value, scope));
  if (statement.attribute.empty()) return Assign(statement.targets, value, scope);
  const Value target = Lookup(statement.targets[0], scope);
  if (!target.as_namespace()) {
    return TemplateError("'", statement.targets[0], "' is no namespace, so ", statement.attribute,
                         " cannot be set");
  }
  if (value.as_namespace() || value.as_function() || value.as_loop()) {
    return TemplateError("a ", value.KindName(), " inside a namespace is not supported");
  }
  target.as_namespace()->attributes[statement.attribute] = value;
  return absl::OkStatus();
}

absl::Status Interpreter::Assign(const std::vector<std::string>& targets, const Value& value,
                                 Scope* scope) {
  if (targets.size() == 1) {
    scope->names[targets[0]] = value;
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const std::vector<Value> parts, Iterate(value, &budget_));
  if (parts.size() != targets.size()) {
    return TemplateError("cannot unpack ", parts.size(), " values into ", targets.size(), " names");
  }
  for (size_t i = 0; i < parts.size(); ++i) scope->names[targets[i]] = parts[i];
  return absl::OkStatus();
}

absl::StatusOr<Value> Interpreter::Capture(const Body& body, Scope* scope) {
  MarkedString outer = std::exchange(page_, MarkedString());
  const absl::StatusOr<Flow> flow = Execute(body, scope);
  MarkedString captured = std::exchange(page_, std::move(outer));
  if (!flow.ok()) return flow.status();
  return Value::String(std::move(captured));
}

absl::Status Interpreter::Print(const MarkedString& text) {
  if (text.size() > options_.max_output_bytes ||
      page_.size() > options_.max_output_bytes - text.size()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("chat template writes over ", options_.max_output_bytes, " bytes"));
  }
  page_.Append(text);
  return absl::OkStatus();
}

// --- Expressions ---

Value Interpreter::Lookup(const std::string& name, const Scope* scope) const {
  for (; scope != nullptr; scope = scope->parent) {
    const auto found = scope->names.find(name);
    if (found != scope->names.end()) return found->second;
  }
  const Value* variable = variables_.Find(name);
  if (variable) return *variable;
  return FindFunction(name) ? Value::Function(FunctionReference::kBuiltIn) : Value();
}

absl::StatusOr<Value> Interpreter::Evaluate(const Expression& expression, Scope* scope) {
  const FrameGuard guard(&frames_);
  if (frames_ > kMaxFrames) return TooDeep();
  RETURN_IF_ERROR(budget_.Charge(1));
  absl::StatusOr<Value> value = EvaluateNode(expression, scope);
  if (!value.ok()) return AtLine(value.status(), expression.line);
  return value;
}

absl::StatusOr<Value> Interpreter::EvaluateNode(const Expression& expression, Scope* scope) {
  const auto& args = expression.args;
  switch (expression.kind) {
    case ExpressionKind::kLiteral:
      return expression.literal;
    case ExpressionKind::kVariable:
      return Lookup(expression.name, scope);
    case ExpressionKind::kList:
    case ExpressionKind::kTuple: {
      ASSIGN_OR_RETURN(Arguments items, EvaluateArguments(expression, 0, scope));
      return MakeList(std::move(items.positional), &budget_,
                      expression.kind == ExpressionKind::kTuple);
    }
    case ExpressionKind::kDict:
      return EvaluateDict(expression, scope);
    case ExpressionKind::kSlice:
      return EvaluateSlice(expression, scope);
    case ExpressionKind::kCompare:
      return EvaluateCompare(expression, scope);
    case ExpressionKind::kConcat:
      return EvaluateConcat(expression, scope);
    case ExpressionKind::kCall:
      return EvaluateCall(expression, scope);
    default:
      break;
  }
  // All the others start from their first operand.
  ASSIGN_OR_RETURN(const Value first, Evaluate(*args[0], scope));
  switch (expression.kind) {
    case ExpressionKind::kAttribute:
      return GetAttribute(first, expression.name);
    case ExpressionKind::kItem: {
      ASSIGN_OR_RETURN(const Value key, Evaluate(*args[1], scope));
      return GetItem(first, key, &budget_);
    }
    case ExpressionKind::kMethod: {
      ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(expression, 1, scope));
      return CallMethod(expression.name, first, arguments, &budget_);
    }
    case ExpressionKind::kFilter: {
      ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(expression, 1, scope));
      return ApplyFilter(expression.name, first, arguments, &budget_);
    }
    case ExpressionKind::kTest: {
      ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(expression, 1, scope));
      ASSIGN_OR_RETURN(const bool passes,
                       ApplyTest(expression.name, first, arguments.positional, &budget_));
      return Value::Bool(passes != expression.negated);
    }
    case ExpressionKind::kNot:
      return Value::Bool(!first.Truthy());
    case ExpressionKind::kNegate:
      return Negate(first);
    case ExpressionKind::kAnd:
      return first.Truthy() ? Evaluate(*args[1], scope) : first;
    case ExpressionKind::kOr:
      return first.Truthy() ? first : Evaluate(*args[1], scope);
    case ExpressionKind::kBinary: {
      ASSIGN_OR_RETURN(const Value right, Evaluate(*args[1], scope));
      return Calculate(expression.name, first, right, &budget_);
    }
    case ExpressionKind::kConditional:
      if (first.Truthy()) return Evaluate(*args[1], scope);
      return args[2] ? Evaluate(*args[2], scope) : Value();
    default:
      return TemplateError("unknown expression");
  }
}

absl::StatusOr<Value> Interpreter::EvaluateDict(const Expression& expression, Scope* scope) {
  DictValue dict;
  for (size_t i = 0; i + 1 < expression.args.size(); i += 2) {
    ASSIGN_OR_RETURN(const Value key, Evaluate(*expression.args[i], scope));
    ASSIGN_OR_RETURN(Value value, Evaluate(*expression.args[i + 1], scope));
    if (!key.as_string())
      return TemplateError("a dict key of kind ", key.KindName(), " is not supported");
    dict.Set(key.as_string()->text(), std::move(value));
  }
  return MakeDict(std::move(dict), &budget_);
}

absl::StatusOr<Value> Interpreter::EvaluateSlice(const Expression& expression, Scope* scope) {
  Value parts[4];
  const Value* given[4] = {};
  for (int i = 0; i < 4; ++i) {
    if (!expression.args[i]) continue;
    ASSIGN_OR_RETURN(parts[i], Evaluate(*expression.args[i], scope));
    given[i] = &parts[i];
  }
  return GetSlice(parts[0], given[1], given[2], given[3], &budget_);
}

absl::StatusOr<Value> Interpreter::EvaluateCompare(const Expression& expression, Scope* scope) {
  ASSIGN_OR_RETURN(Value left, Evaluate(*expression.args[0], scope));
  for (size_t i = 0; i < expression.operators.size(); ++i) {
    ASSIGN_OR_RETURN(Value right, Evaluate(*expression.args[i + 1], scope));
    ASSIGN_OR_RETURN(const bool holds, Compare(expression.operators[i], left, right, &budget_));
    if (!holds) return Value::Bool(false);
    left = std::move(right);
  }
  return Value::Bool(true);
}

absl::StatusOr<Value> Interpreter::EvaluateConcat(const Expression& expression, Scope* scope) {
  MarkedString out;
  for (const ExpressionPtr& part : expression.args) {
    ASSIGN_OR_RETURN(const Value value, Evaluate(*part, scope));
    ASSIGN_OR_RETURN(const MarkedString text, ToText(value, &budget_));
    out.Append(text);
  }
  return Value::String(std::move(out));
}

absl::StatusOr<Arguments> Interpreter::EvaluateArguments(const Expression& expression, size_t first,
                                                         Scope* scope) {
  Arguments arguments;
  for (size_t i = first; i < expression.args.size(); ++i) {
    ASSIGN_OR_RETURN(Value value, Evaluate(*expression.args[i], scope));
    arguments.positional.push_back(std::move(value));
  }
  for (const auto& [name, argument] : expression.named) {
    ASSIGN_OR_RETURN(Value value, Evaluate(*argument, scope));
    arguments.named.emplace_back(name, std::move(value));
  }
  return arguments;
}

absl::StatusOr<Value> Interpreter::EvaluateCall(const Expression& expression, Scope* scope) {
  ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(expression, 0, scope));
  const Value callee = Lookup(expression.name, scope);
  const FunctionReference* function = callee.as_function();
  if (function == nullptr)
    return TemplateError("'", expression.name, "' is no function but ", callee.KindName());
  if (function->index == FunctionReference::kBuiltIn)
    return CallFunction(expression.name, arguments);
  return CallMacro(tree_.macros[function->index], arguments);
}

absl::StatusOr<Value> Interpreter::CallMacro(const MacroDefinition& macro,
                                             const Arguments& arguments) {
  if (++macro_depth_ > options_.max_depth) {
    return absl::ResourceExhaustedError(
        absl::StrCat("chat template calls macros over ", options_.max_depth, " deep"));
  }
  if (arguments.positional.size() > macro.parameters.size()) {
    return TemplateError("macro '", macro.name, "' takes ", macro.parameters.size(),
                         " arguments, got ", arguments.positional.size());
  }
  for (const auto& named : arguments.named) {
    const bool known =
        std::any_of(macro.parameters.begin(), macro.parameters.end(),
                    [&](const auto& parameter) { return parameter.first == named.first; });
    if (!known)
      return TemplateError("macro '", macro.name, "' has no argument '", named.first, "'");
  }
  Scope scope{&top_, {}};
  for (size_t i = 0; i < macro.parameters.size(); ++i) {
    const auto& [name, otherwise] = macro.parameters[i];
    Value value;
    if (const Value* given = arguments.Get(i, name)) {
      value = *given;
    } else if (otherwise) {
      ASSIGN_OR_RETURN(value, Evaluate(*otherwise, &scope));
    }
    scope.names[name] = std::move(value);
  }
  absl::StatusOr<Value> output = Capture(macro.body, &scope);
  --macro_depth_;
  return output;
}

absl::StatusOr<Value> Interpreter::CallFunction(const std::string& name,
                                                const Arguments& arguments) {
  if (name == "raise_exception") {
    ASSIGN_OR_RETURN(const MarkedString text, ToText(arguments.positional[0], &budget_));
    absl::Status raised = absl::InvalidArgumentError(text.text());
    raised.SetPayload(kRaised, absl::Cord());
    return raised;
  }
  if (name == "range") return Range(arguments, &budget_);
  if (name == "strftime_now") return FormatNow(arguments.positional[0], options_.now);
  DictValue entries;
  if (!arguments.positional.empty()) {  // namespace({...})
    if (!arguments.positional[0].as_dict())
      return TemplateError("namespace() takes a dict or named values");
    entries = *arguments.positional[0].as_dict();
  }
  for (const auto& [key, value] : arguments.named) entries.Set(key, value);
  if (name == "dict") return MakeDict(std::move(entries), &budget_);
  Value space = Value::Namespace();
  for (const auto& [key, value] : entries.entries()) {
    RETURN_IF_ERROR(budget_.Charge(1));
    if (value.as_namespace() || value.as_function() || value.as_loop()) {
      return TemplateError("a ", value.KindName(), " inside a namespace is not supported");
    }
    space.as_namespace()->attributes[key] = value;
  }
  return space;
}

}  // namespace fixpoint
