// The syntax tree of a chat template, as the parser builds and the interpreter walks it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/template/value.h"

namespace fixpoint {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

// The operand lists say what args holds.
enum class ExpressionKind : uint8_t {
  kLiteral,      // literal
  kVariable,     // name
  kList,         // args: items
  kTuple,        // args: items
  kDict,         // args: key, value, key, value ...
  kAttribute,    // args: object; name
  kItem,         // args: object, index
  kSlice,        // args: object, start, stop, step (each of the last three may be null)
  kCall,         // name: global function or macro; args, named
  kMethod,       // args: object, then arguments; named; name
  kFilter,       // args: input, then arguments; named; name
  kTest,         // args: input, then arguments; name; negated
  kNot,          // args: operand
  kNegate,       // args: operand
  kAnd,          // args: left, right
  kOr,           // args: left, right
  kBinary,       // args: left, right; name: + - * // %
  kConcat,       // args: parts of a ~ b ~ c
  kCompare,      // args: n + 1 operands; operators: n of == != < <= > >= in "not in"
  kConditional,  // args: condition, value, otherwise (may be null)
};

struct Expression {
  ExpressionKind kind;
  int line = 0;
  int height = 1;  // of the tree under it
  std::string name;
  bool negated = false;
  Value literal;
  std::vector<ExpressionPtr> args;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  std::vector<std::string> operators;
};

struct Statement;
using Body = std::vector<Statement>;

enum class StatementKind : uint8_t {
  kText,
  kOutput,
  kIf,
  kFor,
  kSet,
  kSetBlock,
  kMacro,
  kBreak,
  kContinue,
  kGroup
};

struct Statement {
  StatementKind kind;
  int line = 0;
  Value text;                                            // kText
  ExpressionPtr value;                                   // kOutput, kSet; kFor: what is iterated
  ExpressionPtr condition;                               // kFor: inline if, or null
  std::vector<std::pair<ExpressionPtr, Body>> branches;  // kIf: if and elifs in order
  std::vector<std::string> targets;                      // kFor, kSet, kSetBlock: names
  std::string attribute;  // kSet: of the namespace targets[0], or empty
  Body body;              // kFor, kSetBlock, kGroup
  Body otherwise;         // kIf, kFor: else
  size_t macro = 0;       // kMacro: index of the definition
};

struct MacroDefinition {
  std::string name;
  std::vector<std::pair<std::string, ExpressionPtr>> parameters;  // with default or null
  Body body;
};

struct TemplateTree {
  Body body;
  std::vector<MacroDefinition> macros;
};

}  // namespace fixpoint
