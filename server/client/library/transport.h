// The wire as the library sees it: streams that can break. The real one is grpc_transport.h.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fixpoint/v1/generation.pb.h"

namespace fixpoint::client {

struct StreamEnd {
  absl::Status status;
  std::optional<absl::Duration> pushback;  // when the server wants to be asked again
  bool no_retry = false;  // it wants not to be: a negative or unreadable grpc-retry-pushback-ms
};

// One call of Generate at one target. One thread, but for Cancel. The destructor cancels.
class StreamCall {
 public:
  virtual ~StreamCall() = default;

  enum class Read { kMessage, kEnd, kTimeout };
  // Waits for the next message, until `until` at most; after kTimeout it may be called again.
  virtual Read Next(absl::Time until, v1::GenerateResponse* message) = 0;
  // How it ended. Requires that Next said kEnd.
  virtual const StreamEnd& end() const = 0;
  // Makes Next return kEnd soon. Thread-safe.
  virtual void Cancel() = 0;
};

// Thread-safe.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual int num_targets() const = 0;
  // "HOST:PORT", for messages.
  virtual const std::string& TargetName(int target) const = 0;
  // Returns at once; what goes wrong, connecting included, is told by the call's end.
  virtual std::unique_ptr<StreamCall> Start(int target, const v1::GenerateRequest& request,
                                            absl::Time deadline) = 0;
};

}  // namespace fixpoint::client
