// Chat messages to marked text, with the bundle's template.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "server/served_model.h"
#include "text/tokenizer_spec.h"

namespace fixpoint {

// An empty source gives an empty renderer: the model has no template. An error: the template cannot
// be parsed (the calibrator checks that, so the bundle is wrong).
absl::StatusOr<ChatRenderer> MakeChatRenderer(const std::string& template_source,
                                              const TokenizerSpec& spec);

}  // namespace fixpoint
