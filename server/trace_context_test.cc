#include "server/trace_context.h"

#include <gtest/gtest.h>

#include <string>

namespace fixpoint {
namespace {

constexpr char kTrace[] = "4bf92f3577b34da6a3ce929d0e0e4736";
constexpr char kParent[] = "00f067aa0ba902b7";

std::string Header(const std::string& version, const std::string& trace, const std::string& parent,
                   const std::string& rest = "01") {
  return version + "-" + trace + "-" + parent + "-" + rest;
}

TEST(TraceContextTest, TakesWhatTheStandardAllows) {
  const auto context = ParseTraceparent(Header("00", kTrace, kParent));
  ASSERT_TRUE(context.has_value());
  EXPECT_EQ(context->trace_id, kTrace);
  EXPECT_EQ(context->parent_id, kParent);
  EXPECT_TRUE(ParseTraceparent(Header("00", kTrace, kParent, "ff")).has_value());
  // A later version may go on behind a dash.
  EXPECT_TRUE(ParseTraceparent(Header("01", kTrace, kParent)).has_value());
  EXPECT_TRUE(ParseTraceparent(Header("cc", kTrace, kParent, "01-what-comes-later")).has_value());
}

TEST(TraceContextTest, IgnoresEverythingElse) {
  const std::string good = Header("00", kTrace, kParent);
  for (size_t length = 0; length < good.size(); ++length) {
    EXPECT_FALSE(ParseTraceparent(good.substr(0, length)).has_value()) << length;
  }
  EXPECT_FALSE(ParseTraceparent(good + "-00").has_value());  // version 00 ends here
  EXPECT_FALSE(ParseTraceparent(good + " ").has_value());
  EXPECT_FALSE(ParseTraceparent(Header("cc", kTrace, kParent, "01.later")).has_value());
  EXPECT_FALSE(ParseTraceparent(Header("ff", kTrace, kParent)).has_value());
  EXPECT_FALSE(ParseTraceparent(Header("00", std::string(32, '0'), kParent)).has_value());
  EXPECT_FALSE(ParseTraceparent(Header("00", kTrace, std::string(16, '0'))).has_value());
  for (size_t i = 0; i < good.size(); ++i) {
    for (const char wrong : {'A', 'g', '_', '\0', '\xff', '"'}) {
      std::string bad = good;
      bad[i] = wrong;
      EXPECT_FALSE(ParseTraceparent(bad).has_value()) << i << " " << wrong;
    }
  }
}

}  // namespace
}  // namespace fixpoint
