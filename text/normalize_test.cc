#include "text/normalize.h"

#include <gtest/gtest.h>

namespace fixpoint {
namespace {

TEST(NfcTest, ComposesAndOrders) {
  EXPECT_EQ(ToNfc("e\u0301"), "\u00E9");
  EXPECT_EQ(ToNfc("s\u0307\u0323"), "\u1E69");       // marks change places first
  EXPECT_EQ(ToNfc("\u1100\u1161\u11A8"), "\uAC01");  // Hangul
  EXPECT_EQ(ToNfc("\u212B"), "\u00C5");              // singleton
  EXPECT_EQ(ToNfc("\u0958"), "\u0915\u093C");        // composition exclusion
  EXPECT_EQ(ToNfc("plain \u00FC"), "plain \u00FC");
  EXPECT_EQ(ToNfc(""), "");
}

TEST(NfcTest, MarksNewerThanUnicode9StayWhereTheyAre) {
  EXPECT_EQ(ToNfc("a\u0898\u0323"), "a\u0898\u0323");  // Unicode 15 would put U+0323 first
  EXPECT_EQ(ToNfc("a\u0898\u0301"), "a\u0898\u0301");  // and compose over the mark
}

TEST(NfcTest, OneLongRunOfMarksIsSorted) {
  std::string text = "a", wanted = "\u1EA1";  // the first dot below joins the a
  constexpr int kPairs = 100'000;             // quadratic ordering would take minutes
  for (int i = 0; i < kPairs; ++i) text += "\u0301\u0323";
  for (int i = 1; i < kPairs; ++i) wanted += "\u0323";
  for (int i = 0; i < kPairs; ++i) wanted += "\u0301";
  EXPECT_TRUE(ToNfc(text) == wanted);
}

}  // namespace
}  // namespace fixpoint
