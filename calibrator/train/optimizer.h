// Adam on a flat vector of parameters.
#pragma once

#include <cstdint>
#include <vector>

namespace fixpoint {

struct AdamState {
  std::vector<float> first, second;  // moments
  int64_t steps = 0;
};

// Kingma & Ba 2015 with beta 0.9 and 0.99, epsilon 1e-8. rates[i] is the step size of parameter i,
// 0: it stays as it is.
void AdamStep(const std::vector<double>& gradient, const std::vector<float>& rates, double factor,
              AdamState* state, std::vector<float>* parameters);

// Scales the gradient down to `limit` if its norm over the parameters with a rate is larger; the
// others become 0. Returns the norm before.
double ClipNorm(const std::vector<float>& rates, double limit, std::vector<double>* gradient);

// Share of the full rate at `step` of `steps`: a linear rise over the first `warmup` steps, then
// half a cosine down to 2 %.
double CosineRate(int64_t step, int64_t steps, int64_t warmup);

}  // namespace fixpoint
