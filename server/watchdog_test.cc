#include "server/watchdog.h"

#include <gtest/gtest.h>

namespace fixpoint {
namespace {

constexpr absl::Duration kLook = absl::Milliseconds(250);

class WatchdogTest : public testing::Test {
 protected:
  // Looks for so long, four times a second; true if it was stuck at the last look.
  bool Pass(absl::Duration time, bool work_is_open, uint64_t steps_between = 0) {
    bool stuck = false;
    for (absl::Duration passed; passed < time; passed += kLook) {
      now_ += kLook;
      steps_ += steps_between;
      stuck = watchdog_.Look(now_, work_is_open, steps_);
    }
    return stuck;
  }

  Watchdog watchdog_{absl::Seconds(60)};
  absl::Duration now_ = absl::Hours(1000);  // of a clock that started long ago
  uint64_t steps_ = 0;
};

TEST_F(WatchdogTest, IdleIsNotStuck) {
  EXPECT_FALSE(Pass(absl::Hours(2), /*work_is_open=*/false));
  EXPECT_FALSE(Pass(absl::Seconds(59), /*work_is_open=*/true));  // the idle time did not count
}

TEST_F(WatchdogTest, SlowStepsAreNotStuck) {
  for (int i = 0; i < 20; ++i) {
    EXPECT_FALSE(Pass(absl::Seconds(59), true)) << i;
    EXPECT_FALSE(Pass(kLook, true, /*steps_between=*/1)) << i;
  }
}

TEST_F(WatchdogTest, NoStepForTheLimitIsStuckUntilTheStepEnds) {
  Pass(kLook, true, 1);
  EXPECT_FALSE(Pass(absl::Seconds(60) - kLook, true));
  EXPECT_TRUE(Pass(kLook, true));
  EXPECT_TRUE(Pass(absl::Hours(1), true));
  EXPECT_FALSE(Pass(kLook, true, 1));
  EXPECT_EQ(watchdog_.stalled(), absl::ZeroDuration());
}

TEST_F(WatchdogTest, WorkThatGoesAwayIsAnEnd) {
  Pass(kLook, true, 1);
  EXPECT_TRUE(Pass(absl::Seconds(61), true));
  EXPECT_FALSE(Pass(kLook, /*work_is_open=*/false));
}

TEST_F(WatchdogTest, AStoppedProcessDoesNotFindItsEngineStuck) {
  Pass(kLook, true, 1);
  now_ += absl::Minutes(10);  // SIGSTOP, SIGCONT
  EXPECT_FALSE(watchdog_.Look(now_, true, steps_));
  EXPECT_EQ(watchdog_.stalled(), Watchdog::kMaxGap);
}

}  // namespace
}  // namespace fixpoint
