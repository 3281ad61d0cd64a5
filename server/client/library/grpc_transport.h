// Transport over gRPC.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "fixpoint/v1/generation.grpc.pb.h"
#include "grpcpp/channel.h"
#include "server/client/library/transport.h"

namespace fixpoint::client {

absl::Status FromGrpc(const grpc::Status& status);

// Without TLS: for servers inside one trusted network, or behind a proxy beside the client.
class GrpcTransport final : public Transport {
 public:
  // Each target ("HOST:PORT", or any other gRPC name) gets `connections` connections, used in turn.
  // A call that has no connection after `connect_timeout` is UNAVAILABLE. Connects with the first
  // call. Requires targets and connections >= 1.
  GrpcTransport(std::vector<std::string> targets, int connections, absl::Duration connect_timeout);

  int num_targets() const override { return static_cast<int>(targets_.size()); }
  const std::string& TargetName(int target) const override {
    return targets_[static_cast<size_t>(target)];
  }
  std::unique_ptr<StreamCall> Start(int target, const v1::GenerateRequest& request,
                                    absl::Time deadline) override;

  // For other calls than Generate. A channel that failed to connect is replaced by a new one, which
  // tries again at once: when to try is the caller's decision, not the channel's.
  std::shared_ptr<grpc::Channel> ChannelOf(int target);

  // Waits until the channel is connected, has failed to (the next call on it says why), or
  // `connect_timeout` is over: then UNAVAILABLE.
  absl::Status AwaitConnection(grpc::Channel* channel, absl::Time deadline) const;

 private:
  const std::vector<std::string> targets_;
  const absl::Duration connect_timeout_;
  const size_t connections_;
  absl::Mutex mutex_;
  uint64_t turn_ ABSL_GUARDED_BY(mutex_) = 0;
  // [target * connections + connection], made when first needed
  std::vector<std::shared_ptr<grpc::Channel>> channels_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace fixpoint::client
