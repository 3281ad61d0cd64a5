#include "server/stop_signal.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

namespace fixpoint {
namespace {

// SIGUSR2 ends the thread when the process ends by itself.
sigset_t WatchedSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGTERM, SIGINT, SIGUSR2}) sigaddset(&set, number);
  return set;
}

}  // namespace

StopSignal::StopSignal() {
  const sigset_t set = WatchedSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  ::signal(SIGPIPE, SIG_IGN);  // a closed socket or log is an error code, not the end
  thread_ = std::thread([this] { Watch(); });
}

StopSignal::~StopSignal() {
  pthread_kill(thread_.native_handle(), SIGUSR2);
  thread_.join();
}

void StopSignal::Watch() {
  const sigset_t set = WatchedSignals();
  while (true) {
    int number = 0;
    if (sigwait(&set, &number) != 0) continue;
    if (number == SIGUSR2) return;
    absl::MutexLock lock(&mutex_);
    if (signal_ != 0) _exit(128 + number);
    signal_ = number;
  }
}

int StopSignal::signal() const {
  absl::MutexLock lock(&mutex_);
  return signal_;
}

bool StopSignal::Wait(absl::Duration timeout) const {
  absl::MutexLock lock(&mutex_);
  const auto came = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return signal_ != 0; };
  return mutex_.AwaitWithTimeout(absl::Condition(&came), timeout);
}

}  // namespace fixpoint
