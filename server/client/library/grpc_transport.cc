#include "server/client/library/grpc_transport.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/check.h"
#include "grpcpp/client_context.h"
#include "grpcpp/completion_queue.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"

namespace fixpoint::client {
namespace {

constexpr char kPushbackKey[] = "grpc-retry-pushback-ms";
// Far above any message of the contract; a bound all the same.
constexpr int kMaxMessageBytes = 64 << 20;

std::chrono::system_clock::time_point ToDeadline(absl::Time time) {
  if (time == absl::InfiniteFuture()) return std::chrono::system_clock::time_point::max();
  return absl::ToChronoTime(time);
}

int Milliseconds(absl::Duration duration) {
  return static_cast<int>(
      std::clamp<int64_t>(absl::ToInt64Milliseconds(duration), 1, int64_t{3600} * 1000));
}

// One completion queue a call, so that Next can wait with a limit.
class GrpcStreamCall final : public StreamCall {
 public:
  GrpcStreamCall(const GrpcTransport* transport, std::shared_ptr<grpc::Channel> channel,
                 v1::GenerateRequest request, absl::Time deadline)
      : transport_(transport),
        channel_(std::move(channel)),
        stub_(v1::Generation::NewStub(channel_)),
        request_(std::move(request)),
        deadline_(deadline) {
    if (deadline != absl::InfiniteFuture()) context_.set_deadline(ToDeadline(deadline));
  }

  ~GrpcStreamCall() override {
    context_.TryCancel();
    queue_.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok)) {
    }
  }

  Read Next(absl::Time until, v1::GenerateResponse* message) override {
    if (ended_) return Read::kEnd;
    if (reader_ == nullptr && !Begin()) return Read::kEnd;
    while (true) {
      if (!pending_) {
        reader_->Read(&message_, this);
        pending_ = reading_ = true;
      }
      void* tag = nullptr;
      bool ok = false;
      if (queue_.AsyncNext(&tag, &ok, ToDeadline(until)) == grpc::CompletionQueue::TIMEOUT) {
        return Read::kTimeout;
      }
      pending_ = false;
      if (!ok) return Finish();
      if (!reading_) continue;  // the call has begun
      message->Swap(&message_);
      return Read::kMessage;
    }
  }

  const StreamEnd& end() const override { return end_; }
  void Cancel() override { context_.TryCancel(); }

 private:
  bool Begin() {
    end_.status = transport_->AwaitConnection(channel_.get(), deadline_);
    if (!end_.status.ok()) {
      ended_ = true;
      return false;
    }
    reader_ = stub_->PrepareAsyncGenerate(&context_, request_, &queue_);
    reader_->StartCall(this);
    pending_ = true;
    return true;
  }

  Read Finish() {
    grpc::Status status;
    reader_->Finish(&status, this);
    void* tag = nullptr;
    bool ok = false;
    CHECK(queue_.Next(&tag, &ok));
    end_.status = FromGrpc(status);
    const auto& trailers = context_.GetServerTrailingMetadata();
    if (const auto it = trailers.find(kPushbackKey); it != trailers.end()) {
      int64_t ms = 0;
      const absl::string_view value(it->second.data(), it->second.size());
      if (absl::SimpleAtoi(value, &ms) && ms >= 0) {
        end_.pushback = absl::Milliseconds(ms);
      } else {
        end_.no_retry = true;
      }
    }
    ended_ = true;
    return Read::kEnd;
  }

  const GrpcTransport* const transport_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::Generation::Stub> stub_;
  const v1::GenerateRequest request_;
  const absl::Time deadline_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::ClientAsyncReader<v1::GenerateResponse>> reader_;
  v1::GenerateResponse message_;
  bool pending_ = false;  // an operation is in the queue
  bool reading_ = false;  // it is a Read
  bool ended_ = false;
  StreamEnd end_;
};

}  // namespace

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  // Both number the codes of google.rpc.Code.
  return {static_cast<absl::StatusCode>(status.error_code()), status.error_message()};
}

GrpcTransport::GrpcTransport(std::vector<std::string> targets, int connections,
                             absl::Duration connect_timeout)
    : targets_(std::move(targets)),
      connect_timeout_(connect_timeout),
      connections_(static_cast<size_t>(connections)),
      channels_(targets_.size() * connections_) {
  CHECK_GE(targets_.size(), 1u);
  CHECK_GE(connections, 1);
}

std::unique_ptr<StreamCall> GrpcTransport::Start(int target, const v1::GenerateRequest& request,
                                                 absl::Time deadline) {
  return std::make_unique<GrpcStreamCall>(this, ChannelOf(target), request, deadline);
}

std::shared_ptr<grpc::Channel> GrpcTransport::ChannelOf(int target) {
  absl::MutexLock lock(&mutex_);
  const size_t slot = static_cast<size_t>(target) * connections_ + turn_++ % connections_;
  std::shared_ptr<grpc::Channel>& channel = channels_[slot];
  if (channel == nullptr || channel->GetState(false) == GRPC_CHANNEL_TRANSIENT_FAILURE) {
    grpc::ChannelArguments arguments;
    // Else channels to one address share a connection, and the rest after a failed one.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, Milliseconds(connect_timeout_));
    arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
    channel = grpc::CreateCustomChannel(targets_[static_cast<size_t>(target)],
                                        grpc::InsecureChannelCredentials(), arguments);
  }
  return channel;
}

absl::Status GrpcTransport::AwaitConnection(grpc::Channel* channel, absl::Time deadline) const {
  const absl::Time until = std::min(absl::Now() + connect_timeout_, deadline);
  grpc_connectivity_state state = channel->GetState(/*try_to_connect=*/true);
  while (state == GRPC_CHANNEL_IDLE || state == GRPC_CHANNEL_CONNECTING) {
    if (!channel->WaitForStateChange(state, ToDeadline(until))) {
      if (until == deadline) return absl::DeadlineExceededError("no connection by the deadline");
      return absl::UnavailableError(
          absl::StrCat("no connection within ", absl::ToDoubleSeconds(connect_timeout_), " s"));
    }
    state = channel->GetState(true);
  }
  return absl::OkStatus();
}

}  // namespace fixpoint::client
