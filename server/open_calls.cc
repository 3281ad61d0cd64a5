#include "server/open_calls.h"

#include <chrono>
#include <vector>

namespace fixpoint {

absl::Duration SteadyNow() {
  return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

void OpenCalls::Add(const std::shared_ptr<OutputWatch>& call) {
  absl::MutexLock lock(&mutex_);
  calls_.insert(call);
}

size_t OpenCalls::EndStuckReaders(absl::Duration now, absl::Duration timeout) {
  // References are dropped outside the lock: the last one destroys a call.
  std::vector<std::shared_ptr<OutputWatch>> calls;
  {
    absl::MutexLock lock(&mutex_);
    calls.reserve(calls_.size());
    for (auto next = calls_.begin(); next != calls_.end();) {
      if (std::shared_ptr<OutputWatch> call = next->lock()) {
        calls.push_back(std::move(call));
        ++next;
      } else {
        next = calls_.erase(next);
      }
    }
  }
  size_t stuck = 0;
  for (const std::shared_ptr<OutputWatch>& call : calls) {
    if (now - call->waiting_since() < timeout) continue;  // now - infinity is below any timeout
    call->ReaderStuck();
    ++stuck;
  }
  return stuck;
}

size_t OpenCalls::size() const {
  absl::MutexLock lock(&mutex_);
  return calls_.size();
}

}  // namespace fixpoint
