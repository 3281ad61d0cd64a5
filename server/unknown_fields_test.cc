#include "server/unknown_fields.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fixpoint/v1/generation.pb.h"
#include "google/protobuf/unknown_field_set.h"

namespace fixpoint {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

v1::GenerateRequest FullRequest() {
  v1::GenerateRequest request;
  v1::ChatMessage* message = request.mutable_prompt()->mutable_chat()->add_messages();
  message->set_role("user");
  request.mutable_prompt()->mutable_chat()->add_messages()->set_role("assistant");
  request.mutable_sampling()->set_temperature(1);
  return request;
}

void AddUnknown(google::protobuf::Message* message, int number) {
  message->GetReflection()->MutableUnknownFields(message)->AddVarint(number, 1);
}

void ExpectRefused(const v1::GenerateRequest& request, const char* message, const char* number) {
  // Over the wire, as a client would send it.
  v1::GenerateRequest parsed;
  ASSERT_TRUE(parsed.ParseFromString(request.SerializeAsString()));
  const absl::Status status = RefuseUnknownFields(parsed);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(message), HasSubstr(number)));
}

TEST(UnknownFieldsTest, KnownFieldsPass) { EXPECT_TRUE(RefuseUnknownFields(FullRequest()).ok()); }

TEST(UnknownFieldsTest, TopLevelFieldIsNamed) {
  v1::GenerateRequest request = FullRequest();
  AddUnknown(&request, 29);
  ExpectRefused(request, "fixpoint.v1.GenerateRequest", "field number 29 ");
}

TEST(UnknownFieldsTest, NestedFieldIsNamed) {
  v1::GenerateRequest request = FullRequest();
  AddUnknown(request.mutable_sampling(), 19);
  ExpectRefused(request, "fixpoint.v1.Sampling", "field number 19 ");
}

TEST(UnknownFieldsTest, FieldInAnyRepeatedMessageIsNamed) {
  v1::GenerateRequest request = FullRequest();
  AddUnknown(request.mutable_prompt()->mutable_chat()->mutable_messages(1), 3);
  ExpectRefused(request, "fixpoint.v1.ChatMessage", "field number 3 ");
}

}  // namespace
}  // namespace fixpoint
