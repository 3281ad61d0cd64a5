#include "server/status_mapping.h"

#include <gtest/gtest.h>

namespace fixpoint {
namespace {

TEST(StatusMappingTest, EveryCodeGoesToGrpcAndBack) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), code == 0 ? "" : "text");
    const grpc::Status wire = ToGrpcStatus(status);
    EXPECT_EQ(static_cast<int>(wire.error_code()), code);
    EXPECT_EQ(FromGrpcStatus(wire), status);
  }
}

TEST(StatusMappingTest, HttpCodesAreThoseOfTheTable) {
  EXPECT_EQ(ToHttpStatus(absl::StatusCode::kOk), 200);
  EXPECT_EQ(ToHttpStatus(absl::StatusCode::kInvalidArgument), 400);
  EXPECT_EQ(ToHttpStatus(absl::StatusCode::kNotFound), 404);
  EXPECT_EQ(ToHttpStatus(absl::StatusCode::kResourceExhausted), 429);
  EXPECT_EQ(ToHttpStatus(absl::StatusCode::kCancelled), 499);
  EXPECT_EQ(ToHttpStatus(absl::StatusCode::kInternal), 500);
  EXPECT_EQ(ToHttpStatus(absl::StatusCode::kUnavailable), 503);
  EXPECT_EQ(ToHttpStatus(absl::StatusCode::kDeadlineExceeded), 504);
}

TEST(StatusMappingTest, OnlyAFullQueueTellsWhenToTryAgain) {
  EXPECT_GT(RetryPushbackMs(absl::StatusCode::kResourceExhausted), 0);
  EXPECT_EQ(RetryPushbackMs(absl::StatusCode::kUnavailable), 0);
  EXPECT_EQ(RetryPushbackMs(absl::StatusCode::kInvalidArgument), 0);
}

TEST(StatusMappingTest, NamesAreThoseOfGrpc) {
  EXPECT_EQ(CodeName(absl::StatusCode::kInvalidArgument), "INVALID_ARGUMENT");
  EXPECT_EQ(CodeName(absl::StatusCode::kOk), "OK");
}

}  // namespace
}  // namespace fixpoint
