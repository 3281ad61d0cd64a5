// Tests behind `is`, and those named in select and its kin.
#include "base/status_macros.h"
#include "text/template/builtins.h"
#include "text/template/operators.h"
#include "text/template/strings.h"

namespace fixpoint {
namespace {

// The operator that a test with one argument stands for, or an empty string.
absl::string_view OperatorOfTest(absl::string_view name) {
  if (name == "eq" || name == "equalto" || name == "==") return "==";
  if (name == "ne" || name == "!=") return "!=";
  if (name == "lt" || name == "lessthan" || name == "<") return "<";
  if (name == "le" || name == "<=") return "<=";
  if (name == "gt" || name == "greaterthan" || name == ">") return ">";
  if (name == "ge" || name == ">=") return ">=";
  return name == "in" ? "in" : "";
}

// str.isupper() and str.islower(): some cased letter, and none of the other case.
absl::StatusOr<bool> IsCase(const Value& input, CaseChange change, Budget* budget) {
  const MarkedString* text = input.as_string();
  if (text == nullptr) return TemplateError("test of case on ", input.KindName());
  RETURN_IF_ERROR(budget->ChargeBytes(8 * text->size()));
  const MarkedString upper = ChangeCase(*text, CaseChange::kUpper);
  const MarkedString lower = ChangeCase(*text, CaseChange::kLower);
  return upper.text() != lower.text() &&
         text->text() == (change == CaseChange::kUpper ? upper : lower).text();
}

absl::StatusOr<bool> TestInteger(absl::string_view name, const Value& input,
                                 const std::vector<Value>& arguments) {
  int64_t number, divisor = 2;
  if (!ToInteger(input, &number) || (name == "divisibleby" && !ToInteger(arguments[0], &divisor))) {
    return TemplateError("test '", name, "' on ", input.KindName());
  }
  if (divisor == 0) return TemplateError("division by zero");
  const bool divides = divisor == -1 || number % divisor == 0;
  return name == "odd" ? !divides : divides;
}

}  // namespace

absl::StatusOr<bool> ApplyTest(absl::string_view name, const Value& input,
                               const std::vector<Value>& arguments, Budget* budget) {
  if (const absl::string_view op = OperatorOfTest(name); !op.empty())
    return Compare(op, input, arguments[0], budget);
  if (name == "defined") return !input.is_undefined();
  if (name == "undefined") return input.is_undefined();
  if (name == "none") return input.is_none();
  if (name == "string") return input.as_string() != nullptr;
  if (name == "mapping") return input.as_dict() != nullptr;
  // As Jinja has it, an undefined value can be gone over and has a length of 0.
  if (name == "iterable" || name == "sequence") {
    return input.as_string() || input.as_list() || input.as_dict() || input.is_undefined();
  }
  if (name == "boolean") return input.as_bool() != nullptr;
  if (name == "true") return input.as_bool() != nullptr && *input.as_bool();
  if (name == "false") return input.as_bool() != nullptr && !*input.as_bool();
  if (name == "integer") return input.as_int() != nullptr;
  if (name == "float") return input.is_number_text();
  if (name == "number") return input.as_int() || input.as_bool() || input.is_number_text();
  if (name == "upper") return IsCase(input, CaseChange::kUpper, budget);
  if (name == "lower") return IsCase(input, CaseChange::kLower, budget);
  return TestInteger(name, input, arguments);  // odd, even, divisibleby
}

}  // namespace fixpoint
