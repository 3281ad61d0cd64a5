#include "server/client/library/cancellation.h"

#include <utility>

namespace fixpoint::client {

void Cancellation::Cancel() {
  absl::MutexLock lock(&mutex_);
  if (cancelled_) return;
  cancelled_ = true;
  for (const auto& [number, hook] : hooks_) hook();
}

bool Cancellation::cancelled() const {
  absl::MutexLock lock(&mutex_);
  return cancelled_;
}

void Cancellation::WaitUntil(absl::Time time) const {
  absl::MutexLock lock(&mutex_);
  mutex_.AwaitWithDeadline(absl::Condition(&cancelled_), time);
}

Cancellation::Scope::Scope(Cancellation* cancellation, std::function<void()> hook)
    : cancellation_(cancellation) {
  if (cancellation_ == nullptr) return;
  absl::MutexLock lock(&cancellation_->mutex_);
  if (cancellation_->cancelled_) hook();
  number_ = cancellation_->next_number_++;
  cancellation_->hooks_.emplace(number_, std::move(hook));
}

Cancellation::Scope::~Scope() {
  if (cancellation_ == nullptr) return;
  absl::MutexLock lock(&cancellation_->mutex_);
  cancellation_->hooks_.erase(number_);
}

}  // namespace fixpoint::client
