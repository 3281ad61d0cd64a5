#include "base/build_id.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

TEST(BuildIdTest, IsTheLinkersHash) {
  // 20 bytes of SHA-1 by Debian's linker; tests/hardening_test.py compares with readelf.
  EXPECT_THAT(BuildId(), testing::MatchesRegex("[0-9a-f]{40}"));
  EXPECT_EQ(BuildId(), BuildId());
}

}  // namespace
}  // namespace fixpoint
