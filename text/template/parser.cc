#include "text/template/parser.h"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "base/status_macros.h"
#include "text/template/expression_parser.h"
#include "text/template/signatures.h"
#include "text/template/token_stream.h"

namespace fixpoint {
namespace {

class TemplateParser {
 public:
  explicit TemplateParser(std::vector<TemplateToken> tokens)
      : tokens_(std::move(tokens)), expressions_(&tokens_) {}

  absl::StatusOr<TemplateTree> Run() {
    std::string end;
    RETURN_IF_ERROR(ParseBody({}, &tree_.body, &end));
    for (const auto& [name, line] : expressions_.macro_calls()) {
      const bool known =
          std::any_of(tree_.macros.begin(), tree_.macros.end(),
                      [&](const MacroDefinition& macro) { return macro.name == name; });
      if (!known) return TokenStream::ErrorAt(line, "function '", name, "' is not supported");
    }
    return std::move(tree_);
  }

 private:
  using Ends = std::initializer_list<absl::string_view>;

  // Statements up to a tag that is one of `ends`, whose name goes to *end; its "{%" and name are
  // taken, the rest is not. With no ends: up to the end of the template.
  absl::Status ParseBody(Ends ends, Body* body, std::string* end) {
    if (nesting_ >= kMaxTemplateNesting)
      return tokens_.Error("tags nested over ", kMaxTemplateNesting, " deep");
    ++nesting_;
    const int opened = tokens_.Peek().line;
    while (true) {
      const TemplateToken& token = tokens_.Next();
      if (token.kind == TokenKind::kEnd) {
        if (ends.size() != 0)
          return TokenStream::ErrorAt(opened, "tag without {% ", *(ends.end() - 1), " %}");
        break;
      }
      if (token.kind == TokenKind::kBlockBegin) {
        const TemplateToken& name = tokens_.Next();
        if (name.kind != TokenKind::kName)
          return TokenStream::ErrorAt(name.line, "expected a tag name behind {%");
        if (std::find(ends.begin(), ends.end(), name.text) != ends.end()) {
          *end = name.text;
          break;
        }
        RETURN_IF_ERROR(ParseTag(name, body));
        continue;
      }
      Statement statement{
          token.kind == TokenKind::kData ? StatementKind::kText : StatementKind::kOutput,
          token.line};
      if (token.kind == TokenKind::kData) {
        statement.text = Value::String(token.text, /*trusted=*/true);
      } else {
        ASSIGN_OR_RETURN(statement.value, expressions_.Parse());
        if (tokens_.Peek().kind != TokenKind::kOutputEnd) {
          return tokens_.Error("expected }}, found ", tokens_.Describe());
        }
        tokens_.Next();
      }
      body->push_back(std::move(statement));
    }
    --nesting_;
    return absl::OkStatus();
  }

  absl::Status EndTag() {
    if (tokens_.Peek().kind != TokenKind::kBlockEnd)
      return tokens_.Error("expected %}, found ", tokens_.Describe());
    tokens_.Next();
    return absl::OkStatus();
  }

  absl::Status ParseTag(const TemplateToken& name, Body* body) {
    Statement statement{StatementKind::kGroup, name.line};
    if (name.text == "if") {
      RETURN_IF_ERROR(ParseIf(&statement));
    } else if (name.text == "for") {
      RETURN_IF_ERROR(ParseFor(&statement));
    } else if (name.text == "set") {
      RETURN_IF_ERROR(ParseSet(&statement));
    } else if (name.text == "macro") {
      RETURN_IF_ERROR(ParseMacro(&statement));
    } else if (name.text == "break" || name.text == "continue") {
      if (loops_ == 0) return TokenStream::ErrorAt(name.line, "'", name.text, "' outside of a for");
      statement.kind = name.text == "break" ? StatementKind::kBreak : StatementKind::kContinue;
      RETURN_IF_ERROR(EndTag());
    } else if (name.text ==
               "generation") {  // marks the assistant's part for training; renders as its body
      std::string end;
      RETURN_IF_ERROR(EndTag());
      RETURN_IF_ERROR(ParseBody({"endgeneration"}, &statement.body, &end));
      RETURN_IF_ERROR(EndTag());
    } else {
      return TokenStream::ErrorAt(name.line, "tag '", name.text, "' is not supported");
    }
    body->push_back(std::move(statement));
    return absl::OkStatus();
  }

  absl::Status ParseIf(Statement* statement) {
    statement->kind = StatementKind::kIf;
    std::string end = "if";
    while (end != "endif") {
      if (end == "else") {
        RETURN_IF_ERROR(EndTag());
        RETURN_IF_ERROR(ParseBody({"endif"}, &statement->otherwise, &end));
      } else {
        auto& [condition, body] = statement->branches.emplace_back();
        ASSIGN_OR_RETURN(condition, expressions_.Parse());
        RETURN_IF_ERROR(EndTag());
        RETURN_IF_ERROR(ParseBody({"elif", "else", "endif"}, &body, &end));
      }
    }
    return EndTag();
  }

  // a  or  a, b  or  (a, b)
  absl::Status ParseTargets(std::vector<std::string>* targets) {
    const bool bracket = tokens_.TakeOperator("(");
    do {
      const TemplateToken& name = tokens_.Next();
      if (name.kind != TokenKind::kName)
        return TokenStream::ErrorAt(name.line, "expected a name to set");
      targets->push_back(name.text);
    } while (tokens_.TakeOperator(","));
    return bracket ? tokens_.Expect(")") : absl::OkStatus();
  }

  absl::Status ParseFor(Statement* statement) {
    statement->kind = StatementKind::kFor;
    RETURN_IF_ERROR(ParseTargets(&statement->targets));
    if (std::find(statement->targets.begin(), statement->targets.end(), "loop") !=
        statement->targets.end()) {
      return tokens_.Error("'loop' cannot be the variable of a for");
    }
    if (!tokens_.TakeName("in")) return tokens_.Error("expected 'in', found ", tokens_.Describe());
    ASSIGN_OR_RETURN(statement->value, expressions_.ParseOr());
    if (tokens_.TakeName("if")) {
      ASSIGN_OR_RETURN(statement->condition, expressions_.Parse());
    }
    if (tokens_.IsName("recursive")) return tokens_.Error("'recursive' is not supported");
    RETURN_IF_ERROR(EndTag());
    std::string end;
    ++loops_;
    RETURN_IF_ERROR(ParseBody({"else", "endfor"}, &statement->body, &end));
    --loops_;
    if (end == "else") {
      RETURN_IF_ERROR(EndTag());
      RETURN_IF_ERROR(ParseBody({"endfor"}, &statement->otherwise, &end));
    }
    return EndTag();
  }

  absl::Status ParseSet(Statement* statement) {
    RETURN_IF_ERROR(ParseTargets(&statement->targets));
    if (tokens_.TakeOperator(".")) {
      const TemplateToken& attribute = tokens_.Next();
      if (attribute.kind != TokenKind::kName || statement->targets.size() != 1) {
        return TokenStream::ErrorAt(attribute.line, "expected an attribute behind '.'");
      }
      statement->attribute = attribute.text;
    }
    if (tokens_.TakeOperator("=")) {
      statement->kind = StatementKind::kSet;
      ASSIGN_OR_RETURN(statement->value, expressions_.Parse());
      if (tokens_.IsOperator(","))
        return tokens_.Error("a tuple without brackets is not supported");
      return EndTag();
    }
    statement->kind = StatementKind::kSetBlock;
    if (statement->targets.size() != 1 || !statement->attribute.empty() ||
        tokens_.IsOperator("|")) {
      return tokens_.Error("this form of block set is not supported");
    }
    RETURN_IF_ERROR(EndTag());
    std::string end;
    const int outer_loops = std::exchange(loops_, 0);  // a break may not leave the block half set
    RETURN_IF_ERROR(ParseBody({"endset"}, &statement->body, &end));
    loops_ = outer_loops;
    return EndTag();
  }

  // Macros see the template's top level only, so that is the only place where one may be defined.
  absl::Status ParseMacro(Statement* statement) {
    if (loops_ > 0 || in_macro_)
      return tokens_.Error("a macro inside a for or a macro is not supported");
    MacroDefinition macro;
    const TemplateToken& name = tokens_.Next();
    if (name.kind != TokenKind::kName)
      return TokenStream::ErrorAt(name.line, "expected the name of the macro");
    macro.name = name.text;
    if (FindFunction(macro.name))
      return TokenStream::ErrorAt(name.line, "macro '", macro.name, "' hides a function");
    RETURN_IF_ERROR(tokens_.Expect("("));
    while (!tokens_.TakeOperator(")")) {
      if (!macro.parameters.empty()) RETURN_IF_ERROR(tokens_.Expect(","));
      auto& [parameter, otherwise] = macro.parameters.emplace_back();
      const TemplateToken& token = tokens_.Next();
      if (token.kind != TokenKind::kName)
        return TokenStream::ErrorAt(token.line, "expected a parameter");
      parameter = token.text;
      if (tokens_.TakeOperator("=")) {
        ASSIGN_OR_RETURN(otherwise, expressions_.Parse());
      }
    }
    RETURN_IF_ERROR(EndTag());
    in_macro_ = true;
    std::string end;
    RETURN_IF_ERROR(ParseBody({"endmacro"}, &macro.body, &end));
    in_macro_ = false;
    statement->kind = StatementKind::kMacro;
    statement->targets = {macro.name};
    statement->macro = tree_.macros.size();
    tree_.macros.push_back(std::move(macro));
    return EndTag();
  }

  TokenStream tokens_;
  ExpressionParser expressions_;
  TemplateTree tree_;
  int nesting_ = 0;
  int loops_ = 0;
  bool in_macro_ = false;
};

}  // namespace

absl::StatusOr<TemplateTree> ParseTemplate(absl::string_view source) {
  ASSIGN_OR_RETURN(std::vector<TemplateToken> tokens, LexTemplate(source));
  return TemplateParser(std::move(tokens)).Run();
}

}  // namespace fixpoint
