#include "server/client/library/clock.h"

#include "absl/time/clock.h"

namespace fixpoint::client {
namespace {

class RealClock final : public Clock {
 public:
  absl::Time Now() override { return absl::Now(); }
  void WaitUntil(absl::Time time, const Cancellation& cancellation) override {
    cancellation.WaitUntil(time);
  }
};

}  // namespace

Clock* Clock::Real() {
  static RealClock* const clock = new RealClock;
  return clock;
}

}  // namespace fixpoint::client
