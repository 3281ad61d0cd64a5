#include "server/serving_core.h"

#include <limits>
#include <utility>

namespace fixpoint {

ServingCore::ServingCore(const ServingOptions& options, Metrics* metrics)
    : metrics_(metrics),
      delivery_(options.delivery_threads, std::numeric_limits<size_t>::max()),
      intake_(options.intake_threads, options.max_intake_jobs) {}

std::shared_ptr<ServedModel> ServingCore::Available(RefusalReason* refusal) const {
  std::shared_ptr<ServedModel> model;
  {
    absl::MutexLock lock(&mutex_);
    *refusal = refusing_ ? RefusalReason::kDraining : RefusalReason::kStuck;
    if (refusing_ || stuck_) return nullptr;
    model = model_;
  }
  *refusal = model == nullptr ? RefusalReason::kLoading : RefusalReason::kDeviceLost;
  return model != nullptr && model->engine().healthy() ? model : nullptr;
}

absl::StatusOr<std::shared_ptr<ServedModel>> ServingCore::ModelForNewCall() const {
  RefusalReason refusal = RefusalReason::kLoading;
  std::shared_ptr<ServedModel> model = Available(&refusal);
  if (model != nullptr) return model;
  metrics_->Refused(refusal);
  switch (refusal) {
    case RefusalReason::kDraining:
      return absl::UnavailableError("this server is shutting down; try another replica");
    case RefusalReason::kLoading:
      return absl::UnavailableError("the model is being loaded; try again later");
    case RefusalReason::kStuck:
      return absl::UnavailableError("the engine is stuck; try another replica");
    default:
      return absl::UnavailableError("the device was lost; try another replica");
  }
}

bool ServingCore::IsReady() const {
  RefusalReason ignored = RefusalReason::kLoading;
  return !draining() && Available(&ignored) != nullptr;
}

void ServingCore::SetModel(std::shared_ptr<ServedModel> model) {
  Engine* engine = &model->engine();
  metrics_->SetModel(model->identity(), engine->limits(), [engine] { return engine->load(); });
  absl::MutexLock lock(&mutex_);
  model_ = std::move(model);
}

std::shared_ptr<ServedModel> ServingCore::model() const {
  absl::MutexLock lock(&mutex_);
  return model_;
}

void ServingCore::BeginDrain() {
  absl::MutexLock lock(&mutex_);
  draining_ = true;
  metrics_->SetDraining();
}

bool ServingCore::draining() const {
  absl::MutexLock lock(&mutex_);
  return draining_;
}

void ServingCore::SetStuck(bool stuck) {
  absl::MutexLock lock(&mutex_);
  stuck_ = stuck;
}

bool ServingCore::stuck() const {
  absl::MutexLock lock(&mutex_);
  return stuck_;
}

void ServingCore::RefuseNewCalls() {
  absl::MutexLock lock(&mutex_);
  refusing_ = true;
}

}  // namespace fixpoint
