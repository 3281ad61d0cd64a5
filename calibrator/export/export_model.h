// A model as a static W8A8 checkpoint can hold it: everything that can be done offline is done, and
// nothing is left to do online but what every Llama has.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "calibrator/calibration.h"
#include "calibrator/float_model.h"
#include "calibrator/gemm.h"
#include "calibrator/integer_weights.h"
#include "calibrator/rotate.h"
#include "calibrator/statistics.h"

namespace fixpoint {

// The linear layers with int8 weights, in the order of the arrays below.
struct ExportLinear {
  const char* name;  // "self_attn.q_proj"
  LayerSite site;    // linears of one site share its input, and servers fuse them
  Matrix FloatLayer::*weights;
  std::vector<float> FloatLayer::*bias;  // null: never has one
  IntegerLinear IntegerLayerWeights::*bundle_integers;
};
inline constexpr int32_t kExportLinears = 7;
extern const std::array<ExportLinear, kExportLinears> kExportLinearList;

struct ExportSite {
  float scale = 0;        // x counts as scale * clamp(round(x / scale), -128, 127)
  bool quantized = true;  // false: the linears of this site stay in bf16
};

struct ExportModel {
  // Norms folded and the residual stream rotated; norm vectors hold the gains of their sites. After
  // RoundExport all of it is rounded to bf16.
  FloatModel model;
  std::vector<std::array<IntegerLinear, kExportLinears>> integers;  // [layers]
  std::vector<std::array<ExportSite, kLayerLinearSites>> sites;     // [layers], by LayerSite
};

// How a bundle's gains act on its weights (calibration.h): kGain scales the signal itself, with
// kFolded the weights were divided by the gains first and the function is the float model's.
enum class GainKind { kGain, kFolded };

// The float function that the export will round. `source` is the float checkpoint, `rotation` and
// `scales` those of the bundle. Gains go where the format has room: attn_in and mlp_in into the
// norm in front (rounded to bf16 already here), o_in and down_in into the columns of o_proj and
// down_proj, v into the rows of v_proj, head_in into the last norm. Gains of q and k act behind
// RoPE and are left out: *dropped_gains says whether there were any.
FloatModel CarryOver(FloatModel source, const RotationOptions& rotation, const Scales& scales,
                     GainKind kind, FloatGemm& gemm, ThreadPool& pool, bool* dropped_gains);

// Which input scales the bundle has decided already: int8 sites of attn_in and mlp_in always, o_in
// where it has no gain. All others come from `statistics`, taken on the carried-over model. int16
// sites are marked unquantized.
std::vector<std::array<ExportSite, kLayerLinearSites>> ChooseExportSites(
    const Scales& scales, const Statistics& statistics);

// Rounds the seven linears of each layer to int8 and everything to bf16. Requires result.sites of
// all layers to be set by the caller afterwards.
ExportModel RoundExport(FloatModel carried, ThreadPool& pool);

// Puts the bundle's own integers (WeightsOfBundle) where they mean the same: q, k, v, gate and up
// always, o_proj where its input has no gain. They may have been rounded better than to nearest.
// `scales` are those of CarryOver: v's gains go into the steps of its rows. With kGain those
// without gains are fine too.
void KeepBundleIntegers(const IntegerWeights& weights, const Scales& scales, GainKind kind,
                        ExportModel* model);

// "model.layers.3.mlp.down_proj"
std::string LinearName(int32_t layer, const ExportLinear& linear);

}  // namespace fixpoint
