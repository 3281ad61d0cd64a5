// One streamed answer.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "fixpoint/v1/generation.grpc.pb.h"

namespace fixpoint::client {

struct StreamedAnswer {
  v1::Started started;
  v1::Finished finished;
  std::string text;
  std::vector<uint32_t> token_ids;
};

// Calls on_text with each piece of text as it comes. An error of the server, or of the stream
// itself (an end without the `finished` message), becomes the status.
absl::StatusOr<StreamedAnswer> StreamAnswer(v1::Generation::Stub* stub,
                                            const v1::GenerateRequest& request,
                                            const std::function<void(absl::string_view)>& on_text);

// "stop" or "length".
std::string FinishReasonName(v1::FinishReason reason);

}  // namespace fixpoint::client
