// HOST:PORT flags.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fixpoint {

struct ListenAddress {
  std::string host;  // an IPv4 or IPv6 address, without brackets
  uint16_t port = 0;

  // "127.0.0.1:50051", "[::1]:50051".
  std::string ToString() const;
};

// Takes "127.0.0.1:50051", "[::1]:50051" and "localhost:0". INVALID_ARGUMENT names the text.
absl::StatusOr<ListenAddress> ParseListenAddress(absl::string_view text);

// Why the address cannot be bound right now, as the system says it; OK when it can. The gRPC
// library only tells that it failed.
absl::Status DiagnoseListen(const ListenAddress& address);

}  // namespace fixpoint
