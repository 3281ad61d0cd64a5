#include "engine/cuda_model.h"

#include <algorithm>
#include <cstring>

#include "base/status_macros.h"

namespace fixpoint {
namespace {

constexpr int64_t kAlignBytes = 256;

int64_t RoundUp(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Places tensors one behind the other; without a device it only adds them up.
class Placer {
 public:
  Placer(CudaDevice* device, int8_t* memory) : device_(device), memory_(memory) {}

  template <typename T>
  const T* Put(const std::vector<T>& values) {
    if (values.empty()) return nullptr;
    const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
    return reinterpret_cast<const T*>(PutBytes(values.data(), bytes));
  }

  // A matrix with rows and columns padded by the zeros that the memory is made of.
  LlamaLinear PutLinear(LinearWeights& linear) {
    LlamaLinear result;
    result.outputs = static_cast<int32_t>(RoundUp(linear.outputs, kGemmOutputStep));
    result.depth = static_cast<int32_t>(RoundUp(linear.depth, kGemmDepthStep));
    int8_t* at = Take(int64_t{result.outputs} * result.depth);
    if (device_ != nullptr) {
      CopyRows(linear, result.depth, at);
      std::vector<int8_t>().swap(linear.weights);
    }
    result.packed = at;
    result.bias = PutBias(linear, result.outputs);
    return result;
  }

  int64_t used() const { return used_; }
  const absl::Status& status() const { return status_; }

 private:
  int8_t* Take(int64_t bytes) {
    int8_t* at = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += RoundUp(bytes, kAlignBytes);
    return at;
  }

  const int8_t* PutBytes(const void* from, int64_t bytes) {
    int8_t* at = Take(bytes);
    if (device_ != nullptr) Copy(at, from, bytes);
    return at;
  }

  void Copy(int8_t* to, const void* from, int64_t bytes) {
    if (status_.ok()) status_ = device_->Upload(to, from, bytes);
  }

  void CopyRows(const LinearWeights& linear, int64_t stride, int8_t* to) {
    const int64_t depth = linear.depth;
    if (depth == stride) {
      Copy(to, linear.weights.data(), int64_t{linear.outputs} * depth);
      return;
    }
    // Some rows at a time, so that copies are neither many nor doubled memory.
    const int64_t step = std::max<int64_t>(1, (int64_t{8} << 20) / stride);
    std::vector<int8_t> rows;
    for (int64_t first = 0; first < linear.outputs; first += step) {
      const int64_t count = std::min(step, linear.outputs - first);
      rows.assign(static_cast<size_t>(count * stride), 0);
      for (int64_t r = 0; r < count; ++r) {
        std::memcpy(rows.data() + r * stride, linear.weights.data() + (first + r) * depth,
                    static_cast<size_t>(depth));
      }
      Copy(to + first * stride, rows.data(), count * stride);
    }
  }

  const int32_t* PutBias(const LinearWeights& linear, int32_t outputs) {
    if (linear.bias.empty()) return nullptr;
    std::vector<int32_t> bias = linear.bias;
    bias.resize(static_cast<size_t>(outputs));
    return Put(bias);
  }

  CudaDevice* const device_;
  int8_t* const memory_;
  int64_t used_ = 0;
  absl::Status status_;
};

NarrowParams Put(Placer& to, const NarrowRequantize& r) {
  return {to.Put(r.multipliers), r.p, r.k};
}
WideParams Put(Placer& to, const WideRequantize& r) { return {to.Put(r.multipliers), r.n}; }
LlamaNorm Put(Placer& to, const Norm& n) {
  return {n.fraction_bits, n.k, n.wide, to.Put(n.multipliers)};
}

LlamaLayer Put(Placer& to, ModelLayer& layer) {
  std::vector<ScoreParams> scores;
  for (const ScoreScale& s : layer.scores) scores.push_back({s.d_max, s.a, s.c, s.n});
  LlamaLayer view;
  view.attn_norm = Put(to, layer.attn_norm);
  view.qkv = to.PutLinear(layer.qkv);
  view.q_before = Put(to, layer.q_before);
  view.q_after = Put(to, layer.q_after);
  view.k_before = Put(to, layer.k_before);
  view.k_after = Put(to, layer.k_after);
  view.v = Put(to, layer.v);
  view.scores = to.Put(scores);
  view.attn_out = Put(to, layer.attn_out);
  view.attn_out_wide = layer.attn_out_wide;
  view.o_proj = to.PutLinear(layer.o_proj);
  view.o_requantize = Put(to, layer.o_requantize);
  view.mlp_norm = Put(to, layer.mlp_norm);
  view.gate_up = to.PutLinear(layer.gate_up);
  view.gate = Put(to, layer.gate);
  view.up = Put(to, layer.up);
  view.sigmoid_multiplier = layer.sigmoid_multiplier;
  view.sigmoid_shift = layer.sigmoid_shift;
  view.product_shift = layer.product_shift;
  view.down_in = Put(to, layer.down_in);
  view.down_in_wide = layer.down_in_wide;
  view.down_proj = to.PutLinear(layer.down_proj);
  view.down_requantize = Put(to, layer.down_requantize);
  view.prefix_k = to.Put(layer.prefix_k);
  view.prefix_v = to.Put(layer.prefix_v);
  return view;
}

void PutModel(Placer& to, IntegerModel& model, CudaModel* result) {
  const ModelConfig& c = model.config;
  LlamaModel& m = result->llama;
  m.hidden_size = c.hidden_size;
  m.intermediate_size = c.intermediate_size;
  m.num_layers = c.num_hidden_layers;
  m.num_attention_heads = c.num_attention_heads;
  m.num_key_value_heads = c.num_key_value_heads;
  m.head_dim = c.head_dim;
  m.vocab_size = c.vocab_size;
  m.prefix_tokens = static_cast<int32_t>(model.prefix_token_ids.size());
  m.norm_epsilon = c.norm_epsilon;
  m.down_hadamard_block = c.down_hadamard_block;
  m.qk_hadamard = c.qk_hadamard;
  m.rope_cos = to.Put(model.rope_cos);
  m.rope_sin = to.Put(model.rope_sin);
  m.embedding = to.Put(model.embedding);
  m.embedding_requantize = Put(to, model.embedding_requantize);
  result->layers.clear();
  for (ModelLayer& layer : model.layers) result->layers.push_back(Put(to, layer));
  m.layers = result->layers.data();
  m.final_norm = Put(to, model.final_norm);
  m.head = to.PutLinear(model.head);
  m.head_requantize = Put(to, model.head_requantize);
}

}  // namespace

int64_t CudaModelBytes(const IntegerModel& model) {
  Placer counter(nullptr, nullptr);
  CudaModel ignored;
  // Without a device nothing of the model is touched.
  PutModel(counter, const_cast<IntegerModel&>(model), &ignored);
  return counter.used();
}

absl::Status UploadModel(IntegerModel& model, CudaDevice& device, int8_t* memory,
                         CudaModel* result) {
  Placer placer(&device, memory);
  PutModel(placer, model, result);
  if (placer.status().ok()) std::vector<int8_t>().swap(model.embedding);
  return placer.status();
}

}  // namespace fixpoint
