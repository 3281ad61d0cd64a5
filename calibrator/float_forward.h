// The calibrator's forward pass: windows of text behind a prefix, in float or with every site
// fake-quantized. One code for the float reference, the statistics, text generation and the
// simulation of the integer engine.
//
// Every step is a function of its own on named activations, in the order in which the integer
// engine runs them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "calibrator/calibration.h"
#include "calibrator/float_attention.h"
#include "calibrator/forward_weights.h"
#include "calibrator/gemm.h"
#include "calibrator/statistics.h"

namespace fixpoint {

struct ForwardBatch {
  const int32_t* token_ids = nullptr;  // [sequences][tokens], ids in [0, vocab_size)
  int32_t sequences = 0;
  int32_t tokens = 0;
  int32_t start = 0;  // position of the first token behind the prefix; > 0 only with a KvBuffer
};

// The residual stream of one batch at the start of every `stride`-th layer.
struct LayerCheckpoints {
  int32_t stride = 1;
  std::vector<std::vector<float>> residual;  // [layers / stride, rounded up][rows * hidden_size]
};

// What the backward pass needs of one layer, kept by RunLayer. All values at sites are those before
// rounding, with the gain applied.
struct LayerTape {
  AlignedBuffer attn_in;        // [rows][hidden]
  AlignedBuffer heads;          // [rows][(heads + 2 * kv_heads) * head_dim]: q, k, v
  AlignedBuffer attention_out;  // [rows][heads * head_dim], without the gain of o_in
  AlignedBuffer o_in;           // [rows][heads * head_dim]
  AlignedBuffer middle;         // [rows][hidden]: the residual stream between attention and MLP
  AlignedBuffer mlp_in;         // [rows][hidden]
  AlignedBuffer gate, up;       // [rows][intermediate]
  AlignedBuffer down_in;        // [rows][intermediate]
  AlignedBuffer head_in;        // [rows][hidden], by FinishLayers
  void Reserve(const FloatConfig& config, int64_t rows);  // before its use
};

// The integers (or, without rounding, values) that a linear site hands to the product.
struct SiteRows {
  int32_t layer = 0;  // num_hidden_layers: head_in
  LayerSite site = LayerSite::kAttnIn;
  GemmType type = GemmType::kFloat32;
  int64_t rows = 0, depth = 0;
  const void* hi = nullptr;  // [rows][depth]
  const void* lo = nullptr;  // [rows][depth] at an int16 site in bf16: counts with hi, in 256ths
};
class SiteObserver {
 public:
  virtual ~SiteObserver() = default;
  virtual void OnSite(const SiteRows& rows) = 0;
};

struct ForwardOptions {
  const FloatPrefix* prefix = nullptr;  // null or empty: sequences begin at position 0
  // Not null: every site is rounded to its grid (nearest, ties to even) and clipped. Needs kInt8
  // weights.
  const Scales* scales = nullptr;
  // False: the gains in `scales` are applied and nothing is rounded or clipped.
  bool round = true;
  // The usual dynamic quantization, for comparison: each token's row of a linear input, and each
  // head of q, k and v, is rounded to int8 with a scale of its own (largest magnitude / 127). Needs
  // kInt8 weights, no `scales`.
  bool dynamic_int8 = false;
  // With bf16 products and float activations: two bf16 planes per activation (about float32's
  // precision, twice the time).
  bool precise_activations = true;
  StatisticsCollector* statistics = nullptr;  // sees every site with its gain, before rounding
  SiteObserver* observer = nullptr;           // told of every linear site
  LayerTape* tape = nullptr;                  // filled by RunLayer and FinishLayers
  KvBuffer* kv = nullptr;  // keeps K and V of all layers for later calls; null: windows stand alone
  LayerCheckpoints* record = nullptr;  // filled on the way
  // Recorded from the same batch with the same sites and weights in front of `first_layer`: what
  // would come out the same is skipped.
  const LayerCheckpoints* resume = nullptr;
  int32_t first_layer = 0;
};

class FloatForward {
 public:
  // `model`, `gemm` and `pool` must outlive it.
  FloatForward(const ForwardModel& model, FloatGemm& gemm, ThreadPool& pool);
  ~FloatForward();  // its model's weights may be freed behind it
  FloatForward(const FloatForward&) = delete;
  FloatForward& operator=(const FloatForward&) = delete;

  // Runs all layers; memory is about rows * (2 * intermediate + 6 * hidden) * 4 bytes.
  void Run(const ForwardBatch& batch, const ForwardOptions& options);

  // The same in steps, for training: Start, RunLayer of each layer in order, FinishLayers. RunLayer
  // starts from the residual stream, which can be looked at and replaced between the calls.
  void Start(const ForwardBatch& batch, const ForwardOptions& options);
  void SetTape(LayerTape* tape) { options_.tape = tape; }
  void RunLayer(int32_t layer);
  void FinishLayers();
  const std::vector<float>& rope_cos() const { return rope_cos_; }  // [tokens][head_dim / 2]
  const std::vector<float>& rope_sin() const { return rope_sin_; }
  float* residual() { return residual_.as<float>(); }  // [rows][hidden]
  // After RunLayer, of that layer: what attention read.
  FloatAttentionArgs attention_args(int32_t layer);

  // Logits of rows [begin, end) of the last batch: row = sequence * tokens + token. out [end -
  // begin][vocab_size].
  void Logits(int64_t begin, int64_t end, float* out);

  // K and V of the tokens alone, from position 0. Only for kFloat32 weights.
  FloatPrefix ComputePrefix(absl::Span<const int32_t> token_ids);

  // For a KvBuffer given to Run: integers and bf16 weights keep K and V in bf16.
  GemmType kv_type() const { return model_.head.type; }
  int32_t vocab_size() const { return model_.config().vocab_size; }
  const ForwardModel& model() const { return model_; }

 private:
  // The quantized (or plain) input of a linear layer: y = factor * (hi + lo) * w^T, hi and lo
  // [rows][stride].
  struct SiteInput {
    GemmType type = GemmType::kFloat32;
    int64_t depth = 0;
    bool two_planes = false;
    float factor = 1;
    std::vector<float> row_factors;  // [rows] with dynamic scales; empty: factor
    AlignedBuffer hi, lo;
  };

  void Prepare(const ForwardBatch& batch, const ForwardOptions& options);
  void PreparePrefix(int32_t layer);
  void FillRopeTables(int32_t first_position, int32_t count);
  void EmbedTokens();
  void Record(int32_t layer);
  int32_t Resume();
  void AttentionInput(int32_t layer);
  void ProjectQkv(int32_t layer);
  void RotateHeads(int32_t layer);
  void RotateRow(int32_t layer, int64_t row, int thread);
  void StoreHead(const float* x, double scale, void* out);
  bool Rounds() const { return options_.scales != nullptr && options_.round; }
  void Attend(int32_t layer);
  void AttentionOutputInput(int32_t layer);
  void AddAttentionOutput(int32_t layer);
  void MlpInput(int32_t layer);
  void ProjectGateUp(int32_t layer);
  void SwiGlu(int32_t layer);
  void AddMlpOutput(int32_t layer);
  void HeadInput();

  void StartSite(const LinearSite* site, const ForwardLinear& consumer);
  void WriteSiteRow(const LinearSite* site, int64_t row, float* x, AlignedBuffer LayerTape::*tape,
                    int32_t layer, LayerSite kind, int thread);
  void EndSite(int32_t layer, LayerSite site);
  GemmType AttentionType() const { return options_.dynamic_int8 ? GemmType::kFloat32 : kv_type(); }
  const LinearSite* Site(int32_t layer, LayerSite site) const;
  void Multiply(const ForwardLinear& w, int64_t begin, int64_t rows, float* y, int64_t y_stride);
  void ScaleRow(const ForwardLinear& w, int64_t row, float* y) const;
  void AddToResidual(const ForwardLinear& w, std::vector<float> LayerRanges::*range, int32_t layer);
  template <typename F>
  void ForRows(F&& fn);
  int64_t rows() const { return int64_t{batch_.sequences} * batch_.tokens; }
  int32_t prefix_tokens() const { return options_.prefix ? options_.prefix->size() : 0; }

  const ForwardModel& model_;
  const FloatConfig& config_;
  FloatGemm& gemm_;
  ThreadPool& pool_;
  FloatAttention attention_;

  ForwardBatch batch_;
  ForwardOptions options_;
  KvBuffer window_kv_;  // one layer's K and V when options_.kv is null
  KvBuffer* kv_ = nullptr;
  int32_t kv_layer_ = 0;
  std::vector<float> rope_cos_, rope_sin_;  // [positions of the batch][head_dim / 2]
  int32_t rope_first_ = -1;
  std::vector<float> score_units_, v_units_, prefix_k_, prefix_v_;  // of the layer at work

  SiteInput input_;
  AlignedBuffer residual_;          // [rows][hidden]
  AlignedBuffer qkv_;               // [rows][(heads + 2 * kv_heads) * head_dim]
  AlignedBuffer q_heads_;           // FloatAttention's q
  AlignedBuffer attention_out_;     // [rows][heads * head_dim]
  AlignedBuffer gate_, up_;         // [rows][intermediate]
  AlignedBuffer linear_out_;        // [rows][hidden]
  std::vector<AlignedBuffer> row_;  // per thread, one row of any activation
};

}  // namespace fixpoint
