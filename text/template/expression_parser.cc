#include "text/template/expression_parser.h"

#include <algorithm>

#include "base/status_macros.h"
#include "text/template/parser.h"
#include "text/template/signatures.h"

namespace fixpoint {
namespace {

using Kind = ExpressionKind;

std::vector<ExpressionPtr> Args(ExpressionPtr a, ExpressionPtr b = nullptr) {
  std::vector<ExpressionPtr> args;
  args.push_back(std::move(a));
  if (b) args.push_back(std::move(b));
  return args;
}

// `given` positional arguments and the keywords of `call` against what the table knows.
absl::Status CheckArguments(absl::string_view what, const Signature& signature, size_t given,
                            const Expression& call) {
  if (static_cast<int>(given) < signature.min_args && call.named.empty()) {
    return TokenStream::ErrorAt(call.line, what, " '", signature.name, "' needs ",
                                signature.min_args, " arguments, has ", given);
  }
  if (given > static_cast<size_t>(signature.max_args)) {
    return TokenStream::ErrorAt(call.line, what, " '", signature.name, "' with ", given,
                                " arguments is not supported, at most ", signature.max_args,
                                " are");
  }
  for (const auto& [keyword, value] : call.named) {
    const auto& known = signature.keywords;
    if (std::find(known.begin(), known.end(), keyword) == known.end()) {
      return TokenStream::ErrorAt(call.line, what, " '", signature.name, "': argument '", keyword,
                                  "' is not supported");
    }
  }
  return absl::OkStatus();
}

// A test or filter named by a string, as in select("defined") or map("trim").
absl::Status CheckNamedByArgument(const Expression& filter) {
  const bool attribute = filter.name == "selectattr" || filter.name == "rejectattr";
  const size_t at = attribute ? 2 : 1;
  const bool is_map = filter.name == "map";
  if (!attribute && !is_map && filter.name != "select" && filter.name != "reject")
    return absl::OkStatus();
  if (is_map && filter.args.size() < 2 && filter.named.empty()) {
    return TokenStream::ErrorAt(filter.line, "filter 'map' needs a filter or an attribute");
  }
  if (filter.args.size() <= at) return absl::OkStatus();
  const MarkedString* name = filter.args[at]->literal.as_string();
  if (name == nullptr) {
    return TokenStream::ErrorAt(filter.line, "filter '", filter.name,
                                "' with a computed name is not supported");
  }
  const Signature* known = is_map ? FindFilter(name->text()) : FindTest(name->text());
  if (known == nullptr || (is_map && known->name == "map")) {
    return TokenStream::ErrorAt(filter.line, is_map ? "filter '" : "test '", name->text(),
                                "' is not supported");
  }
  const size_t given = filter.args.size() - at - 1;
  if (static_cast<int>(given) < known->min_args || given > static_cast<size_t>(known->max_args)) {
    return TokenStream::ErrorAt(filter.line, "'", name->text(), "' inside '", filter.name,
                                "' with ", given, " arguments is not supported");
  }
  return absl::OkStatus();
}

}  // namespace

ExpressionParser::Result ExpressionParser::Finish(ExpressionPtr node) const {
  for (const ExpressionPtr& arg : node->args) {
    if (arg) node->height = std::max(node->height, 1 + arg->height);
  }
  for (const auto& named : node->named)
    node->height = std::max(node->height, 1 + named.second->height);
  if (node->height > kMaxExpressionHeight) {
    return TokenStream::ErrorAt(node->line, "expression is over ", kMaxExpressionHeight,
                                " operations deep");
  }
  return node;
}

ExpressionParser::Result ExpressionParser::Make(ExpressionKind kind, int line,
                                                std::vector<ExpressionPtr> args,
                                                std::string name) const {
  auto node = std::make_unique<Expression>();
  node->kind = kind;
  node->line = line;
  node->args = std::move(args);
  node->name = std::move(name);
  return Finish(std::move(node));
}

ExpressionParser::Result ExpressionParser::Parse() {
  if (nesting_ >= kMaxTemplateNesting)
    return tokens_.Error("expression nested over ", kMaxTemplateNesting, " deep");
  ++nesting_;
  Result value = ParseOr();
  while (value.ok() && tokens_.IsName("if")) {
    const int line = tokens_.Next().line;
    Result condition = ParseOr();
    if (!condition.ok()) return condition;
    ExpressionPtr otherwise;
    if (tokens_.TakeName("else")) {
      ASSIGN_OR_RETURN(otherwise, Parse());
    }
    std::vector<ExpressionPtr> args = Args(*std::move(condition), *std::move(value));
    args.push_back(std::move(otherwise));
    value = Make(Kind::kConditional, line, std::move(args));
  }
  --nesting_;
  return value;
}

ExpressionParser::Result ExpressionParser::ParseOr() {
  ASSIGN_OR_RETURN(ExpressionPtr left, ParseAnd());
  while (tokens_.IsName("or")) {
    const int line = tokens_.Next().line;
    ASSIGN_OR_RETURN(ExpressionPtr right, ParseAnd());
    ASSIGN_OR_RETURN(left, Make(Kind::kOr, line, Args(std::move(left), std::move(right))));
  }
  return left;
}

ExpressionParser::Result ExpressionParser::ParseAnd() {
  ASSIGN_OR_RETURN(ExpressionPtr left, ParseNot());
  while (tokens_.IsName("and")) {
    const int line = tokens_.Next().line;
    ASSIGN_OR_RETURN(ExpressionPtr right, ParseNot());
    ASSIGN_OR_RETURN(left, Make(Kind::kAnd, line, Args(std::move(left), std::move(right))));
  }
  return left;
}

ExpressionParser::Result ExpressionParser::ParseNot() {
  if (!tokens_.IsName("not")) return ParseCompare();
  if (nesting_ >= kMaxTemplateNesting)
    return tokens_.Error("expression nested over ", kMaxTemplateNesting, " deep");
  const int line = tokens_.Next().line;
  ++nesting_;
  Result operand = ParseNot();
  --nesting_;
  if (!operand.ok()) return operand;
  return Make(Kind::kNot, line, Args(*std::move(operand)));
}

ExpressionParser::Result ExpressionParser::ParseCompare() {
  ASSIGN_OR_RETURN(ExpressionPtr first, ParseSum());
  auto node = std::make_unique<Expression>();
  node->kind = Kind::kCompare;
  node->line = first->line;
  node->args.push_back(std::move(first));
  while (true) {
    std::string op;
    for (const absl::string_view known : {"==", "!=", "<=", ">=", "<", ">"}) {
      if (op.empty() && tokens_.TakeOperator(known)) op = std::string(known);
    }
    if (op.empty() && tokens_.TakeName("in")) op = "in";
    if (op.empty() && tokens_.IsName("not") && tokens_.IsName("in", 1)) {
      tokens_.Next();
      tokens_.Next();
      op = "not in";
    }
    if (op.empty()) break;
    ASSIGN_OR_RETURN(ExpressionPtr operand, ParseSum());
    node->operators.push_back(std::move(op));
    node->args.push_back(std::move(operand));
  }
  if (node->operators.empty()) return std::move(node->args[0]);
  return Finish(std::move(node));
}

ExpressionParser::Result ExpressionParser::ParseSum() {
  ASSIGN_OR_RETURN(ExpressionPtr left, ParseConcat());
  while (tokens_.IsOperator("+") || tokens_.IsOperator("-")) {
    const TemplateToken& op = tokens_.Next();
    ASSIGN_OR_RETURN(ExpressionPtr right, ParseConcat());
    ASSIGN_OR_RETURN(
        left, Make(Kind::kBinary, op.line, Args(std::move(left), std::move(right)), op.text));
  }
  return left;
}

ExpressionParser::Result ExpressionParser::ParseConcat() {
  ASSIGN_OR_RETURN(ExpressionPtr first, ParseProduct());
  if (!tokens_.IsOperator("~")) return first;
  const int line = first->line;
  std::vector<ExpressionPtr> parts = Args(std::move(first));
  while (tokens_.TakeOperator("~")) {
    ASSIGN_OR_RETURN(ExpressionPtr part, ParseProduct());
    parts.push_back(std::move(part));
  }
  return Make(Kind::kConcat, line, std::move(parts));
}

ExpressionParser::Result ExpressionParser::ParseProduct() {
  ASSIGN_OR_RETURN(ExpressionPtr left, ParseUnary(/*with_filters=*/true));
  while (tokens_.Peek().kind == TokenKind::kOperator) {
    const TemplateToken& op = tokens_.Peek();
    if (op.text == "/" || op.text == "**")
      return tokens_.Error("operator '", op.text, "' is not supported");
    if (op.text != "*" && op.text != "//" && op.text != "%") break;
    tokens_.Next();
    ASSIGN_OR_RETURN(ExpressionPtr right, ParseUnary(/*with_filters=*/true));
    ASSIGN_OR_RETURN(
        left, Make(Kind::kBinary, op.line, Args(std::move(left), std::move(right)), op.text));
  }
  return left;
}

ExpressionParser::Result ExpressionParser::ParseUnary(bool with_filters) {
  ExpressionPtr value;
  if (tokens_.IsOperator("-") || tokens_.IsOperator("+")) {
    if (nesting_ >= kMaxTemplateNesting)
      return tokens_.Error("expression nested over ", kMaxTemplateNesting, " deep");
    const TemplateToken& sign = tokens_.Next();
    if (sign.text == "+") return TokenStream::ErrorAt(sign.line, "unary '+' is not supported");
    ++nesting_;
    Result operand = ParseUnary(/*with_filters=*/false);
    --nesting_;
    if (!operand.ok()) return operand;
    ASSIGN_OR_RETURN(value, Make(Kind::kNegate, sign.line, Args(*std::move(operand))));
  } else {
    ASSIGN_OR_RETURN(value, ParsePrimary());
  }
  ASSIGN_OR_RETURN(value, ParsePostfix(std::move(value)));
  if (!with_filters) return value;
  return ParseFiltersAndTests(std::move(value));
}

ExpressionParser::Result ExpressionParser::ParsePrimary() {
  const TemplateToken& token = tokens_.Next();
  ASSIGN_OR_RETURN(ExpressionPtr node, Make(Kind::kLiteral, token.line, {}));
  switch (token.kind) {
    case TokenKind::kInteger:
      node->literal = Value::Int(token.number);
      return node;
    case TokenKind::kString: {
      std::string text = token.text;
      while (tokens_.Peek().kind == TokenKind::kString) text += tokens_.Next().text;
      node->literal = Value::String(std::move(text), /*trusted=*/true);
      return node;
    }
    case TokenKind::kName:
      if (token.text == "true" || token.text == "True") {
        node->literal = Value::Bool(true);
      } else if (token.text == "false" || token.text == "False") {
        node->literal = Value::Bool(false);
      } else if (token.text == "none" || token.text == "None") {
        node->literal = Value::MakeNone();
      } else if (tokens_.IsOperator("(")) {
        return ParseCall(token.line, token.text);
      } else {
        node->kind = Kind::kVariable;
        node->name = token.text;
      }
      return node;
    case TokenKind::kOperator:
      if (token.text == "(") return ParseList(")");
      if (token.text == "[") return ParseList("]");
      if (token.text == "{") return ParseDict();
      [[fallthrough]];
    default:
      return TokenStream::ErrorAt(token.line, "expected a value, found '", token.text, "'");
  }
}

// A list, or in round brackets one value or a tuple.
ExpressionParser::Result ExpressionParser::ParseList(absl::string_view close) {
  const int line = tokens_.Peek().line;
  std::vector<ExpressionPtr> items;
  bool comma = false;
  while (!tokens_.IsOperator(close)) {
    if (!items.empty()) {
      RETURN_IF_ERROR(tokens_.Expect(","));
      comma = true;
      if (tokens_.IsOperator(close)) break;
    }
    ASSIGN_OR_RETURN(ExpressionPtr item, Parse());
    items.push_back(std::move(item));
  }
  RETURN_IF_ERROR(tokens_.Expect(close));
  if (close == ")" && items.size() == 1 && !comma) return std::move(items[0]);
  return Make(close == ")" ? Kind::kTuple : Kind::kList, line, std::move(items));
}

ExpressionParser::Result ExpressionParser::ParseDict() {
  const int line = tokens_.Peek().line;
  std::vector<ExpressionPtr> entries;
  while (!tokens_.IsOperator("}")) {
    if (!entries.empty()) {
      RETURN_IF_ERROR(tokens_.Expect(","));
      if (tokens_.IsOperator("}")) break;
    }
    ASSIGN_OR_RETURN(ExpressionPtr key, Parse());
    RETURN_IF_ERROR(tokens_.Expect(":"));
    ASSIGN_OR_RETURN(ExpressionPtr value, Parse());
    entries.push_back(std::move(key));
    entries.push_back(std::move(value));
  }
  RETURN_IF_ERROR(tokens_.Expect("}"));
  return Make(Kind::kDict, line, std::move(entries));
}

ExpressionParser::Result ExpressionParser::ParsePostfix(ExpressionPtr object) {
  while (true) {
    if (tokens_.TakeOperator(".")) {
      ASSIGN_OR_RETURN(object, ParseAttribute(std::move(object)));
    } else if (tokens_.TakeOperator("[")) {
      ASSIGN_OR_RETURN(object, ParseSubscript(std::move(object)));
    } else if (tokens_.IsOperator("(")) {
      return tokens_.Error("a call of anything but a named function or method is not supported");
    } else {
      return object;
    }
  }
}

ExpressionParser::Result ExpressionParser::ParseAttribute(ExpressionPtr object) {
  const TemplateToken& name = tokens_.Next();
  if (name.kind != TokenKind::kName)
    return TokenStream::ErrorAt(name.line, "expected an attribute behind '.'");
  if (tokens_.IsOperator("(")) return ParseMethod(name.line, std::move(object), name.text);
  if (object->kind == Kind::kVariable && object->name == "loop" && !IsLoopAttribute(name.text)) {
    return TokenStream::ErrorAt(name.line, "'loop.", name.text, "' is not supported");
  }
  if (name.text.substr(0, 2) == "__")
    return TokenStream::ErrorAt(name.line, "attribute '", name.text, "' is not supported");
  return Make(Kind::kAttribute, name.line, Args(std::move(object)), name.text);
}

ExpressionParser::Result ExpressionParser::ParseSubscript(ExpressionPtr object) {
  const int line = tokens_.Peek().line;
  std::vector<ExpressionPtr> args = Args(std::move(object));
  bool slice = false;
  ExpressionPtr part;
  while (!tokens_.IsOperator("]")) {
    if (tokens_.TakeOperator(":")) {
      slice = true;
      args.push_back(std::move(part));
      part = nullptr;
      if (args.size() > 3) return TokenStream::ErrorAt(line, "a slice has at most two ':'");
    } else if (tokens_.IsOperator(",") || part) {
      return tokens_.Error("expected ']', found ", tokens_.Describe());
    } else {
      ASSIGN_OR_RETURN(part, Parse());
    }
  }
  RETURN_IF_ERROR(tokens_.Expect("]"));
  if (!slice && !part) return TokenStream::ErrorAt(line, "[] without an index");
  args.push_back(std::move(part));
  if (!slice) return Make(Kind::kItem, line, std::move(args));
  args.resize(4);
  return Make(Kind::kSlice, line, std::move(args));
}

absl::Status ExpressionParser::ParseArguments(Expression* call) {
  RETURN_IF_ERROR(tokens_.Expect("("));
  bool first = true;
  while (!tokens_.IsOperator(")")) {
    if (!first) {
      RETURN_IF_ERROR(tokens_.Expect(","));
      if (tokens_.IsOperator(")")) break;
    }
    first = false;
    if (tokens_.IsOperator("*") || tokens_.IsOperator("**")) {
      return tokens_.Error("'", tokens_.Peek().text, "' in arguments is not supported");
    }
    if (tokens_.Peek().kind == TokenKind::kName && tokens_.IsOperator("=", 1)) {
      const std::string name = tokens_.Next().text;
      tokens_.Next();
      ASSIGN_OR_RETURN(ExpressionPtr value, Parse());
      call->named.emplace_back(name, std::move(value));
      continue;
    }
    if (!call->named.empty()) return tokens_.Error("positional argument behind a named one");
    ASSIGN_OR_RETURN(ExpressionPtr value, Parse());
    call->args.push_back(std::move(value));
  }
  return tokens_.Expect(")");
}

ExpressionParser::Result ExpressionParser::ParseCall(int line, std::string name) {
  ASSIGN_OR_RETURN(ExpressionPtr call, Make(Kind::kCall, line, {}, name));
  RETURN_IF_ERROR(ParseArguments(call.get()));
  if (const Signature* function = FindFunction(name)) {
    if (name != "namespace" && name != "dict") {
      RETURN_IF_ERROR(CheckArguments("function", *function, call->args.size(), *call));
    } else if (call->args.size() > static_cast<size_t>(function->max_args)) {
      return TokenStream::ErrorAt(line, "function '", name,
                                  "' with positional arguments is not supported");
    }
  } else {
    macro_calls_.emplace_back(name, line);
  }
  return Finish(std::move(call));
}

ExpressionParser::Result ExpressionParser::ParseMethod(int line, ExpressionPtr object,
                                                       std::string name) {
  const Signature* method = FindMethod(name);
  if (method == nullptr) return TokenStream::ErrorAt(line, "method '", name, "' is not supported");
  ASSIGN_OR_RETURN(ExpressionPtr call, Make(Kind::kMethod, line, Args(std::move(object)), name));
  RETURN_IF_ERROR(ParseArguments(call.get()));
  RETURN_IF_ERROR(CheckArguments("method", *method, call->args.size() - 1, *call));
  return Finish(std::move(call));
}

ExpressionParser::Result ExpressionParser::ParseFiltersAndTests(ExpressionPtr input) {
  while (true) {
    if (tokens_.TakeOperator("|")) {
      ASSIGN_OR_RETURN(input, ParseFilter(std::move(input)));
    } else if (tokens_.TakeName("is")) {
      ASSIGN_OR_RETURN(input, ParseTest(std::move(input)));
    } else {
      return input;
    }
  }
}

ExpressionParser::Result ExpressionParser::ParseFilter(ExpressionPtr input) {
  const TemplateToken& name = tokens_.Next();
  if (name.kind != TokenKind::kName)
    return TokenStream::ErrorAt(name.line, "expected a filter behind '|'");
  const Signature* filter = FindFilter(name.text);
  if (filter == nullptr)
    return TokenStream::ErrorAt(name.line, "filter '", name.text, "' is not supported");
  ASSIGN_OR_RETURN(ExpressionPtr call,
                   Make(Kind::kFilter, name.line, Args(std::move(input)), name.text));
  if (tokens_.IsOperator("(")) RETURN_IF_ERROR(ParseArguments(call.get()));
  RETURN_IF_ERROR(CheckArguments("filter", *filter, call->args.size() - 1, *call));
  RETURN_IF_ERROR(CheckNamedByArgument(*call));
  return Finish(std::move(call));
}

ExpressionParser::Result ExpressionParser::ParseTest(ExpressionPtr input) {
  const bool negated = tokens_.TakeName("not");
  const TemplateToken& name = tokens_.Next();
  if (name.kind != TokenKind::kName)
    return TokenStream::ErrorAt(name.line, "expected a test behind 'is'");
  const Signature* test = FindTest(name.text);
  if (test == nullptr)
    return TokenStream::ErrorAt(name.line, "test '", name.text, "' is not supported");
  ASSIGN_OR_RETURN(ExpressionPtr call,
                   Make(Kind::kTest, name.line, Args(std::move(input)), name.text));
  call->negated = negated;
  if (tokens_.IsOperator("(")) {
    RETURN_IF_ERROR(ParseArguments(call.get()));
  } else if (test->min_args > 0) {  // is divisibleby 2
    ASSIGN_OR_RETURN(ExpressionPtr argument, ParsePrimary());
    ASSIGN_OR_RETURN(argument, ParsePostfix(std::move(argument)));
    call->args.push_back(std::move(argument));
  }
  RETURN_IF_ERROR(CheckArguments("test", *test, call->args.size() - 1, *call));
  return Finish(std::move(call));
}

}  // namespace fixpoint
