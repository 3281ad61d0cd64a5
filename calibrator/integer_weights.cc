#include "calibrator/integer_weights.h"

#include <algorithm>

#include "base/check.h"
#include "calibrator/forward_weights.h"
#include "calibrator/vector_loops.h"

namespace fixpoint {
namespace {

// `gain`, when not empty, divides the columns.
IntegerLinear Round(const Matrix& w, const std::vector<float>& gain, ThreadPool& pool) {
  CHECK(gain.empty() || static_cast<int64_t>(gain.size()) == w.cols)
      << gain.size() << " gains for " << w.cols << " columns";
  IntegerLinear result{.outputs = w.rows, .depth = w.cols};
  result.values.resize(static_cast<size_t>(w.rows) * w.cols);
  result.steps.resize(w.rows);
  pool.ParallelFor(w.rows, 16, [&](int64_t begin, int64_t end, int) {
    std::vector<float> row(w.cols);
    for (int64_t r = begin; r < end; ++r) {
      std::copy(w.row(r), w.row(r) + w.cols, row.begin());
      for (size_t c = 0; c < gain.size(); ++c) row[c] /= gain[c];
      const float step = static_cast<float>(Int8RowStep(row.data(), w.cols));
      result.steps[r] = step;
      Vec().quantize(row.data(), w.cols, 1 / step, 127, 1, row.data());
      int8_t* out = result.values.data() + r * w.cols;
      for (int64_t c = 0; c < w.cols; ++c) out[c] = static_cast<int8_t>(row[c]);
    }
  });
  return result;
}

}  // namespace

const LayerLinear kLayerLinears[kLinearsPerLayer] = {
    {&FloatLayer::q_proj, &IntegerLayerWeights::q, LayerSite::kAttnIn, "q_proj"},
    {&FloatLayer::k_proj, &IntegerLayerWeights::k, LayerSite::kAttnIn, "k_proj"},
    {&FloatLayer::v_proj, &IntegerLayerWeights::v, LayerSite::kAttnIn, "v_proj"},
    {&FloatLayer::o_proj, &IntegerLayerWeights::o, LayerSite::kOIn, "o_proj"},
    {&FloatLayer::gate_proj, &IntegerLayerWeights::gate, LayerSite::kMlpIn, "gate_proj"},
    {&FloatLayer::up_proj, &IntegerLayerWeights::up, LayerSite::kMlpIn, "up_proj"},
    {&FloatLayer::down_proj, &IntegerLayerWeights::down, LayerSite::kDownIn, "down_proj"},
};

IntegerWeights RoundWeights(const FloatModel& rotated, const Scales* folded, ThreadPool& pool) {
  static const std::vector<float> kNoGain;
  CHECK(folded == nullptr || folded->layers.size() == rotated.layers.size());
  IntegerWeights result;
  result.embedding = Round(rotated.embedding, kNoGain, pool);
  result.layers.resize(rotated.layers.size());
  for (size_t i = 0; i < rotated.layers.size(); ++i) {
    for (const LayerLinear& linear : kLayerLinears) {
      result.layers[i].*linear.integers =
          Round(rotated.layers[i].*linear.weights,
                folded ? folded->layers[i].linear(linear.site).gain : kNoGain, pool);
    }
  }
  result.head = Round(rotated.head_or_embedding(), folded ? folded->head_in.gain : kNoGain, pool);
  return result;
}

}  // namespace fixpoint
