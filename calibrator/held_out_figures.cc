#include "calibrator/held_out_figures.h"

#include <algorithm>

#include "base/check.h"
#include "base/status_macros.h"

namespace fixpoint {

const HeldOutFigures::Model& HeldOutFigures::Find(const std::string& name) const {
  const Model* found = FindOrNull(name);
  CHECK(found != nullptr) << name;
  return *found;
}

const HeldOutFigures::Model* HeldOutFigures::FindOrNull(const std::string& name) const {
  const auto found = std::find_if(models.begin(), models.end(),
                                  [&](const Model& model) { return model.name == name; });
  return found == models.end() ? nullptr : &*found;
}

absl::Status HeldOutFigures::Add(const std::string& name, LogitSource& teacher, LogitSource& source,
                                 const Windows& held_out, ThreadPool& pool) {
  ASSIGN_OR_RETURN(const std::vector<Comparison> result,
                   Compare(teacher, {&source}, held_out, pool));
  tokens = static_cast<int64_t>(held_out.token_ids.size());
  float_perplexity = Perplexity(result[0].teacher_loss);
  models.push_back({.name = name,
                    .perplexity = Perplexity(result[0].loss),
                    .relative = RelativeTo(result[0].teacher_loss, result[0].loss),
                    .kl_mean = result[0].kl_mean,
                    .top1_agreement = result[0].top1_agreement});
  return absl::OkStatus();
}

}  // namespace fixpoint
