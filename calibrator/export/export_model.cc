#include "calibrator/export/export_model.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "calibrator/forward_weights.h"
#include "calibrator/ranges.h"
#include "calibrator/vector_loops.h"

namespace fixpoint {

const std::array<ExportLinear, kExportLinears> kExportLinearList = {{
    {"self_attn.q_proj", LayerSite::kAttnIn, &FloatLayer::q_proj, &FloatLayer::q_bias,
     &IntegerLayerWeights::q},
    {"self_attn.k_proj", LayerSite::kAttnIn, &FloatLayer::k_proj, &FloatLayer::k_bias,
     &IntegerLayerWeights::k},
    {"self_attn.v_proj", LayerSite::kAttnIn, &FloatLayer::v_proj, &FloatLayer::v_bias,
     &IntegerLayerWeights::v},
    {"self_attn.o_proj", LayerSite::kOIn, &FloatLayer::o_proj, nullptr, &IntegerLayerWeights::o},
    {"mlp.gate_proj", LayerSite::kMlpIn, &FloatLayer::gate_proj, nullptr,
     &IntegerLayerWeights::gate},
    {"mlp.up_proj", LayerSite::kMlpIn, &FloatLayer::up_proj, nullptr, &IntegerLayerWeights::up},
    {"mlp.down_proj", LayerSite::kDownIn, &FloatLayer::down_proj, nullptr,
     &IntegerLayerWeights::down},
}};

namespace {

void RoundToBf16(float* values, int64_t n) {
  constexpr int64_t kPiece = 4096;
  uint16_t piece[kPiece];
  for (int64_t first = 0; first < n; first += kPiece) {
    const int64_t count = std::min(kPiece, n - first);
    Vec().to_bf16(values + first, count, piece);
    Vec().from_bf16(piece, count, values + first);
  }
}

void RoundToBf16(std::vector<float>& values) {
  RoundToBf16(values.data(), static_cast<int64_t>(values.size()));
}

void RoundToBf16(Matrix& m, ThreadPool& pool) {
  pool.ParallelFor(m.rows, 64, [&](int64_t begin, int64_t end, int) {
    RoundToBf16(m.row(begin), (end - begin) * m.cols);
  });
}

// row(r, values) for all rows.
template <typename F>
void ForRows(Matrix& m, ThreadPool& pool, F&& row) {
  pool.ParallelFor(m.rows, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) row(r, m.row(r));
  });
}

class GainCarrier {
 public:
  GainCarrier(FloatModel& model, const RotationOptions& rotation, GainKind kind, ThreadPool& pool)
      : model_(model),
        kind_(kind),
        down_block_(HadamardBlock(model.config.intermediate_size, rotation.max_down_block)),
        pool_(pool) {}

  void Layer(const LayerScales& scales, FloatLayer& layer) {
    IntoNorm(scales.attn_in.gain, layer.attn_norm, {&layer.q_proj, &layer.k_proj, &layer.v_proj});
    IntoNorm(scales.mlp_in.gain, layer.mlp_norm, {&layer.gate_proj, &layer.up_proj});
    // Folded gains are undone by the weights: the float function has none.
    if (kind_ == GainKind::kFolded) return;
    IntoColumns(scales.o_in.gain, /*block=*/1, layer.o_proj);
    IntoColumns(scales.down_in.gain, down_block_, layer.down_proj);
    if (!scales.v_gain.empty()) {
      ForRows(layer.v_proj, pool_, [&](int64_t r, float* row) {
        for (int64_t c = 0; c < layer.v_proj.cols; ++c) row[c] *= scales.v_gain[r];
      });
      for (size_t r = 0; r < layer.v_bias.size(); ++r) layer.v_bias[r] *= scales.v_gain[r];
    }
  }

  // The head is not quantized, so that folded gains have nothing to do there.
  void Head(const LinearSite& site) {
    if (kind_ == GainKind::kGain) IntoNorm(site.gain, model_.final_norm, {});
  }

 private:
  // The norm writes its output times the gain; with kFolded its readers divide by what was written,
  // rounding of the norm included.
  void IntoNorm(const std::vector<float>& gain, std::vector<float>& norm,
                const std::vector<Matrix*>& readers) {
    if (gain.empty()) return;
    CHECK_EQ(gain.size(), norm.size());
    norm = gain;
    RoundToBf16(norm);
    if (kind_ == GainKind::kGain) return;
    for (Matrix* reader : readers) {
      ForRows(*reader, pool_, [&](int64_t, float* row) {
        for (int64_t c = 0; c < reader->cols; ++c) row[c] /= norm[c];
      });
    }
  }

  // W diag(gain), the gain acting in the basis behind a Hadamard transform of `block`:
  // W H (H diag(gain) H), and H is its own inverse.
  void IntoColumns(const std::vector<float>& gain, int32_t block, Matrix& w) {
    if (gain.empty()) return;
    CHECK_EQ(static_cast<int64_t>(gain.size()), w.cols);
    ForRows(w, pool_, [&](int64_t, float* row) {
      if (block > 1) Vec().hadamard(row, w.cols, block);
      for (int64_t c = 0; c < w.cols; ++c) row[c] *= gain[c];
      if (block > 1) Vec().hadamard(row, w.cols, block);
    });
  }

  FloatModel& model_;
  const GainKind kind_;
  const int32_t down_block_;
  ThreadPool& pool_;
};

IntegerLinear RoundLinear(const Matrix& w, ThreadPool& pool) {
  IntegerLinear linear{.outputs = w.rows, .depth = w.cols, .values = {}, .steps = {}};
  linear.values.resize(static_cast<size_t>(w.rows * w.cols));
  linear.steps.resize(static_cast<size_t>(w.rows));
  pool.ParallelFor(w.rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const float step = static_cast<float>(Int8RowStep(w.row(r), w.cols));
      linear.steps[static_cast<size_t>(r)] = step;
      int8_t* out = linear.values.data() + r * w.cols;
      for (int64_t c = 0; c < w.cols; ++c) {
        const float q = std::nearbyint(w.row(r)[c] / step);
        out[c] = static_cast<int8_t>(std::clamp(q, -127.0f, 127.0f));
      }
    }
  });
  return linear;
}

}  // namespace

FloatModel CarryOver(FloatModel source, const RotationOptions& rotation, const Scales& scales,
                     GainKind kind, FloatGemm& gemm, ThreadPool& pool, bool* dropped_gains) {
  CHECK_EQ(scales.layers.size(), source.layers.size());
  RotationOptions offline = rotation;
  offline.max_down_block = 1;
  offline.qk_hadamard = false;
  FoldAndRotate(source, offline, gemm, pool);
  *dropped_gains = false;
  GainCarrier carrier(source, rotation, kind, pool);
  for (size_t i = 0; i < source.layers.size(); ++i) {
    carrier.Layer(scales.layers[i], source.layers[i]);
    if (kind == GainKind::kGain)
      *dropped_gains |= !scales.layers[i].q_gain.empty() || !scales.layers[i].k_gain.empty();
  }
  carrier.Head(scales.head_in);
  return source;
}

std::vector<std::array<ExportSite, kLayerLinearSites>> ChooseExportSites(
    const Scales& scales, const Statistics& statistics) {
  CHECK_EQ(scales.layers.size(), statistics.layers.size());
  std::vector<std::array<ExportSite, kLayerLinearSites>> sites(scales.layers.size());
  for (size_t i = 0; i < sites.size(); ++i) {
    for (int32_t j = 0; j < kLayerLinearSites; ++j) {
      const LayerSite site = static_cast<LayerSite>(j);
      const LinearSite& decided = scales.layers[i].linear(site);
      const bool same_input = site == LayerSite::kAttnIn || site == LayerSite::kMlpIn ||
                              (site == LayerSite::kOIn && decided.gain.empty());
      const double scale = same_input && !decided.wide
                               ? decided.scale
                               : ScaleSite(statistics.layers[i].linear[j], false).scale;
      sites[i][j] = {.scale = static_cast<float>(scale), .quantized = !decided.wide};
    }
  }
  return sites;
}

ExportModel RoundExport(FloatModel carried, ThreadPool& pool) {
  ExportModel result;
  result.model = std::move(carried);
  FloatModel& m = result.model;
  for (FloatLayer& layer : m.layers) {
    std::array<IntegerLinear, kExportLinears>& integers = result.integers.emplace_back();
    for (int32_t i = 0; i < kExportLinears; ++i) {
      const ExportLinear& linear = kExportLinearList[i];
      integers[i] = RoundLinear(layer.*linear.weights, pool);
      RoundToBf16(layer.*linear.weights, pool);
      if (linear.bias != nullptr) RoundToBf16(layer.*linear.bias);
    }
    RoundToBf16(layer.attn_norm);
    RoundToBf16(layer.mlp_norm);
  }
  RoundToBf16(m.embedding, pool);
  RoundToBf16(m.head, pool);
  RoundToBf16(m.final_norm);
  return result;
}

void KeepBundleIntegers(const IntegerWeights& weights, const Scales& scales, GainKind kind,
                        ExportModel* model) {
  CHECK_EQ(weights.layers.size(), model->integers.size());
  for (size_t layer = 0; layer < weights.layers.size(); ++layer) {
    const LayerScales& s = scales.layers[layer];
    for (int32_t i = 0; i < kExportLinears; ++i) {
      const ExportLinear& linear = kExportLinearList[i];
      if (linear.site == LayerSite::kDownIn) continue;
      if (linear.site == LayerSite::kOIn && !s.o_in.gain.empty()) continue;
      IntegerLinear& to = model->integers[layer][i];
      const IntegerLinear& from = weights.layers[layer].*linear.bundle_integers;
      CHECK(from.outputs == to.outputs && from.depth == to.depth) << linear.name;
      to = from;
      if (linear.weights == &FloatLayer::v_proj && kind == GainKind::kGain) {
        for (size_t r = 0; r < s.v_gain.size(); ++r) to.steps[r] *= s.v_gain[r];
      }
    }
  }
}

std::string LinearName(int32_t layer, const ExportLinear& linear) {
  return absl::StrCat("model.layers.", layer, ".", linear.name);
}

}  // namespace fixpoint
