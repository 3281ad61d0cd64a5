// The one place where our status codes become gRPC's and HTTP's.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "grpcpp/support/status.h"

namespace fixpoint {

grpc::Status ToGrpcStatus(const absl::Status& status);
absl::Status FromGrpcStatus(const grpc::Status& status);

// The HTTP status that stands for a code: 400 for INVALID_ARGUMENT, 429 for RESOURCE_EXHAUSTED, 503
// for UNAVAILABLE and so on.
int ToHttpStatus(absl::StatusCode code);

// "INVALID_ARGUMENT": for logs and the metrics' `code` label.
std::string CodeName(absl::StatusCode code);

// When a caller may try the same server again, for the metadata `grpc-retry-pushback-ms`; 0: no
// hint. UNAVAILABLE has none: another replica may take the call at once.
int RetryPushbackMs(absl::StatusCode code);

}  // namespace fixpoint
