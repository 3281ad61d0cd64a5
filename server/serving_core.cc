#include "server/serving_core.h"

#include <limits>
#include <utility>

namespace fixpoint {

ServingCore::ServingCore(const ServingOptions& options, Metrics* metrics)
    : metrics_(metrics),
      delivery_(options.delivery_threads, std::numeric_limits<size_t>::max()),
      intake_(options.intake_threads, options.max_intake_jobs) {}

absl::StatusOr<std::shared_ptr<ServedModel>> ServingCore::ModelForNewCall() const {
  std::shared_ptr<ServedModel> model;
  {
    absl::MutexLock lock(&mutex_);
    if (refusing_)
      return absl::UnavailableError("this server is shutting down; try another replica");
    model = model_;
  }
  if (model == nullptr) return absl::UnavailableError("the model is being loaded; try again later");
  if (!model->engine().healthy())
    return absl::UnavailableError("the device was lost; try another replica");
  return model;
}

bool ServingCore::IsReady() const { return !draining() && ModelForNewCall().ok(); }

void ServingCore::SetModel(std::shared_ptr<ServedModel> model) {
  Engine* engine = &model->engine();
  metrics_->SetModel(model->identity(), [engine] { return engine->load(); });
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

void ServingCore::RefuseNewCalls() {
  absl::MutexLock lock(&mutex_);
  refusing_ = true;
}

}  // namespace fixpoint
