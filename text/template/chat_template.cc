#include "text/template/chat_template.h"

#include "base/status_macros.h"
#include "text/template/interpreter.h"
#include "text/template/parser.h"

namespace fixpoint {

ChatTemplate::ChatTemplate(std::unique_ptr<TemplateTree> tree) : tree_(std::move(tree)) {}
ChatTemplate::~ChatTemplate() = default;

std::tm TemplateDate() {
  std::tm date = {};
  date.tm_year = 2024 - 1900;
  date.tm_mon = 6;
  date.tm_mday = 26;
  date.tm_wday = 5;
  date.tm_yday = 207;
  return date;
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(absl::string_view source) {
  ASSIGN_OR_RETURN(TemplateTree tree, ParseTemplate(source));
  return std::unique_ptr<ChatTemplate>(
      new ChatTemplate(std::make_unique<TemplateTree>(std::move(tree))));
}

absl::StatusOr<std::vector<TextSegment>> ChatTemplate::Render(const Value& variables,
                                                              const RenderOptions& options) const {
  if (!variables.as_dict())
    return absl::InvalidArgumentError("chat template: the variables must be a dict");
  Interpreter interpreter(*tree_, *variables.as_dict(), options);
  ASSIGN_OR_RETURN(const MarkedString text, interpreter.Run());
  return text.Segments();
}

}  // namespace fixpoint
