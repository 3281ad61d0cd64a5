// Chat templates: the part of Jinja that published checkpoints use, rendered under budgets with the
// origin of each character.
#pragma once

#include <cstdint>
#include <ctime>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "text/template/value.h"
#include "text/text_segment.h"

namespace fixpoint {

struct TemplateTree;

// 26 July 2024: what strftime_now() prints unless a caller sets another time. Always the same day,
// because the same request must give the same tokens on any day. Templates that ask for a date use
// this one as their own default.
std::tm TemplateDate();

struct RenderOptions {
  int64_t max_steps = 1'000'000;  // nodes evaluated, items touched, 64 bytes of string made
  int max_depth = 64;             // of macro calls, and of lists and dicts in each other
  size_t max_output_bytes = 8u << 20;
  std::tm now = TemplateDate();  // what strftime_now() prints
};

// Immutable and thread-safe once parsed.
//
// Behaves as jinja2 with trim_blocks and lstrip_blocks in a sandbox, as Hugging Face sets it up,
// and knows its additions: raise_exception, strftime_now, tojson, loop controls, {% generation %}.
// The names known are in signatures.cc.
class ChatTemplate {
 public:
  // Refuses, with name and line, every construct that rendering would not know. Source: at most 1
  // MiB of valid UTF-8.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Parse(absl::string_view source);
  ~ChatTemplate();

  // `variables` is a dict: messages, add_generation_prompt, bos_token and so on. The segments
  // alternate between trusted (the template's literals and strings passed as trusted) and
  // untrusted; none is empty. Errors: kInvalidArgument for raise_exception, whose text is the
  // message, and for values that the template cannot take; kResourceExhausted for budgets.
  absl::StatusOr<std::vector<TextSegment>> Render(const Value& variables,
                                                  const RenderOptions& options) const;

 private:
  explicit ChatTemplate(std::unique_ptr<TemplateTree> tree);
  std::unique_ptr<TemplateTree> tree_;
};

}  // namespace fixpoint
