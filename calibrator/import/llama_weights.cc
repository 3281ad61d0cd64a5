#include "calibrator/import/llama_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace fixpoint {
namespace {

// Names of the tensors; those of a layer follow layer_prefix, the layer's number and a dot.
struct TensorNames {
  absl::string_view embedding, final_norm, head, layer_prefix;
  absl::string_view attn_norm, q, k, v, o;  // q, k, v also with ".bias"
  absl::string_view mlp_norm, gate, up, down;
};

constexpr TensorNames kGgufNames = {"token_embd.weight",
                                    "output_norm.weight",
                                    "output.weight",
                                    "blk.",
                                    "attn_norm",
                                    "attn_q",
                                    "attn_k",
                                    "attn_v",
                                    "attn_output",
                                    "ffn_norm",
                                    "ffn_gate",
                                    "ffn_up",
                                    "ffn_down"};

constexpr TensorNames kHuggingFaceNames = {"model.embed_tokens.weight",
                                           "model.norm.weight",
                                           "lm_head.weight",
                                           "model.layers.",
                                           "input_layernorm",
                                           "self_attn.q_proj",
                                           "self_attn.k_proj",
                                           "self_attn.v_proj",
                                           "self_attn.o_proj",
                                           "post_attention_layernorm",
                                           "mlp.gate_proj",
                                           "mlp.up_proj",
                                           "mlp.down_proj"};

// A tensor that the model needs and where it goes: a matrix, or a vector (cols == 0).
struct Slot {
  std::string name;
  int64_t rows = 0;
  int64_t cols = 0;
  Matrix* matrix = nullptr;
  std::vector<float>* vector = nullptr;
  size_t source_index = 0;
  int32_t interleaved_heads = 0;  // rows to be put back into half-split order; 0: none

  std::vector<int64_t> shape() const {
    return cols == 0 ? std::vector<int64_t>{rows} : std::vector<int64_t>{rows, cols};
  }
};

class SlotList {
 public:
  void AddMatrix(std::string name, int64_t rows, int64_t cols, Matrix* matrix, int32_t heads = 0) {
    Slot slot;
    slot.name = std::move(name);
    slot.rows = rows;
    slot.cols = cols;
    slot.matrix = matrix;
    slot.interleaved_heads = heads;
    slots_.push_back(std::move(slot));
  }
  void AddVector(std::string name, int64_t size, std::vector<float>* vector) {
    Slot slot;
    slot.name = std::move(name);
    slot.rows = size;
    slot.vector = vector;
    slots_.push_back(std::move(slot));
  }
  std::vector<Slot>& slots() { return slots_; }

 private:
  std::vector<Slot> slots_;
};

void AddLayer(const FloatConfig& config, const TensorNames& names, bool interleaved, int32_t index,
              FloatLayer* layer, SlotList* list) {
  const auto name = [&](absl::string_view tensor, absl::string_view kind) {
    return absl::StrCat(names.layer_prefix, index, ".", tensor, ".", kind);
  };
  const int64_t hidden = config.hidden_size;
  const int64_t inner = config.intermediate_size;
  const int64_t q_rows = int64_t{config.num_attention_heads} * config.head_dim;
  const int64_t kv_rows = int64_t{config.num_key_value_heads} * config.head_dim;
  const int32_t q_heads = interleaved ? config.num_attention_heads : 0;
  const int32_t k_heads = interleaved ? config.num_key_value_heads : 0;
  list->AddVector(name(names.attn_norm, "weight"), hidden, &layer->attn_norm);
  list->AddMatrix(name(names.q, "weight"), q_rows, hidden, &layer->q_proj, q_heads);
  list->AddMatrix(name(names.k, "weight"), kv_rows, hidden, &layer->k_proj, k_heads);
  list->AddMatrix(name(names.v, "weight"), kv_rows, hidden, &layer->v_proj);
  if (config.architecture == "qwen2") {
    list->AddVector(name(names.q, "bias"), q_rows, &layer->q_bias);
    list->AddVector(name(names.k, "bias"), kv_rows, &layer->k_bias);
    list->AddVector(name(names.v, "bias"), kv_rows, &layer->v_bias);
  }
  list->AddMatrix(name(names.o, "weight"), hidden, q_rows, &layer->o_proj);
  list->AddVector(name(names.mlp_norm, "weight"), hidden, &layer->mlp_norm);
  list->AddMatrix(name(names.gate, "weight"), inner, hidden, &layer->gate_proj);
  list->AddMatrix(name(names.up, "weight"), inner, hidden, &layer->up_proj);
  list->AddMatrix(name(names.down, "weight"), hidden, inner, &layer->down_proj);
}

bool IsBuffer(absl::string_view name, CheckpointFormat format) {
  return format == CheckpointFormat::kGguf ? name == "rope_freqs.weight"
                                           : absl::EndsWith(name, "rotary_emb.inv_freq");
}

// Finds every slot's tensor, compares shapes, and refuses what is left over.
absl::Status MatchSlots(const TensorSource& source, CheckpointFormat format,
                        std::vector<Slot>& slots) {
  const std::vector<TensorInfo>& tensors = source.tensors();
  absl::flat_hash_map<absl::string_view, size_t> index_of;
  for (size_t i = 0; i < tensors.size(); ++i) index_of.emplace(tensors[i].name, i);
  const std::string where = tensors.empty() ? "the checkpoint" : source.PathOf(0);
  for (Slot& slot : slots) {
    const auto found = index_of.find(slot.name);
    if (found == index_of.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": tensor ", slot.name, " ", ShapeText(slot.shape()), " is missing"));
    }
    slot.source_index = found->second;
    const TensorInfo& info = tensors[slot.source_index];
    if (info.shape != slot.shape()) {
      return absl::InvalidArgumentError(absl::StrCat(
          source.PathOf(slot.source_index), ": tensor ", slot.name, " has shape ",
          ShapeText(info.shape), ", the configuration asks for ", ShapeText(slot.shape())));
    }
    index_of.erase(found);
  }
  std::vector<absl::string_view> extra;
  for (const auto& [name, index] : index_of) {
    if (!IsBuffer(name, format)) extra.push_back(name);
  }
  if (extra.empty()) return absl::OkStatus();
  const absl::string_view first = *std::min_element(extra.begin(), extra.end());
  return absl::UnimplementedError(
      absl::StrCat(source.PathOf(index_of.at(first)), ": tensor ", absl::CHexEscape(first),
                   " has no place in this architecture (", extra.size(), " such tensors)"));
}

// Row 2 i + j of a head is row j * head_dim / 2 + i of the half-split order.
template <typename T>
void Deinterleave(T* rows, int64_t cols, int32_t num_heads, int32_t head_dim) {
  std::vector<T> head(static_cast<size_t>(head_dim * cols));
  for (int32_t h = 0; h < num_heads; ++h) {
    T* out = rows + int64_t{h} * head_dim * cols;
    std::copy(out, out + int64_t{head_dim} * cols, head.begin());
    for (int32_t row = 0; row < head_dim; ++row) {
      const int32_t to = (row % 2) * (head_dim / 2) + row / 2;
      std::copy_n(head.data() + row * cols, cols, out + to * cols);
    }
  }
}

absl::Status ReadSlot(const TensorSource& source, int32_t head_dim, const Slot& slot) {
  if (slot.vector != nullptr) {
    slot.vector->resize(static_cast<size_t>(slot.rows));
    return source.Read(slot.source_index, absl::MakeSpan(*slot.vector));
  }
  slot.matrix->rows = slot.rows;
  slot.matrix->cols = slot.cols;
  slot.matrix->data.resize(static_cast<size_t>(slot.rows * slot.cols));
  RETURN_IF_ERROR(source.Read(slot.source_index, absl::MakeSpan(slot.matrix->data)));
  if (slot.interleaved_heads > 0) {
    Deinterleave(slot.matrix->data.data(), slot.cols, slot.interleaved_heads, head_dim);
  }
  return absl::OkStatus();
}

// Some files keep a copy of a tied head. A different one would mean that the config is wrong about
// the tying.
absl::Status DropTiedHead(const std::string& path, FloatModel& model) {
  const std::vector<float>& head = model.head.data;
  const std::vector<float>& embedding = model.embedding.data;
  if (std::memcmp(head.data(), embedding.data(), head.size() * sizeof(float)) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        path,
        ": tensor lm_head.weight differs from the embedding, but tie_word_embeddings is true"));
  }
  model.head = Matrix();
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateFloatConfig(const FloatConfig& config, absl::string_view place) {
  struct Range {
    absl::string_view name;
    int64_t value;
    int64_t max;
  };
  // Upper limits lie well above published models; they keep every product of two below 2^40.
  const Range ranges[] = {
      {"hidden_size", config.hidden_size, 1 << 16},
      {"intermediate_size", config.intermediate_size, 1 << 18},
      {"num_hidden_layers", config.num_hidden_layers, 1 << 10},
      {"num_attention_heads", config.num_attention_heads, 1 << 10},
      {"num_key_value_heads", config.num_key_value_heads, 1 << 10},
      {"head_dim", config.head_dim, 1 << 10},
      {"vocab_size", config.vocab_size, 1 << 20},
      {"max_position_embeddings", config.max_position_embeddings, 1 << 28},
  };
  for (const Range& range : ranges) {
    if (range.value < 1 || range.value > range.max) {
      return absl::InvalidArgumentError(absl::StrCat(place, ": ", range.name, " is ", range.value,
                                                     ", the limits are 1 and ", range.max));
    }
  }
  if (config.head_dim % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(place, ": head_dim is ", config.head_dim, ", RoPE needs an even one"));
  }
  if (config.num_attention_heads % config.num_key_value_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(place, ": ", config.num_attention_heads,
                                                   " attention heads are no multiple of ",
                                                   config.num_key_value_heads, " key-value heads"));
  }
  if (!(config.rms_norm_eps > 0 && config.rms_norm_eps <= 0.1)) {
    return absl::InvalidArgumentError(absl::StrCat(place, ": rms_norm_eps is ", config.rms_norm_eps,
                                                   ", the limits are 0 (excluded) and 0.1"));
  }
  return absl::OkStatus();
}

absl::StatusOr<FloatModel> ReadLlamaWeights(const FloatConfig& config, const TensorSource& source,
                                            CheckpointFormat format,
                                            const ImportProgress& progress) {
  const bool gguf = format == CheckpointFormat::kGguf;
  const TensorNames& names = gguf ? kGgufNames : kHuggingFaceNames;
  FloatModel model;
  model.config = config;
  model.layers.resize(static_cast<size_t>(config.num_hidden_layers));
  SlotList list;
  list.AddMatrix(std::string(names.embedding), config.vocab_size, config.hidden_size,
                 &model.embedding);
  for (int32_t i = 0; i < config.num_hidden_layers; ++i) {
    AddLayer(config, names, gguf && config.architecture == "llama", i,
             &model.layers[static_cast<size_t>(i)], &list);
  }
  list.AddVector(std::string(names.final_norm), config.hidden_size, &model.final_norm);
  const bool has_head =
      std::any_of(source.tensors().begin(), source.tensors().end(),
                  [&names](const TensorInfo& info) { return info.name == names.head; });
  if (has_head || !config.tie_word_embeddings) {
    list.AddMatrix(std::string(names.head), config.vocab_size, config.hidden_size, &model.head);
  }
  RETURN_IF_ERROR(MatchSlots(source, format, list.slots()));

  double total = 0;
  for (const Slot& slot : list.slots())
    total += static_cast<double>(slot.rows * std::max<int64_t>(slot.cols, 1));
  double done = 0;
  for (const Slot& slot : list.slots()) {
    if (progress) progress("read weights", done / total);
    RETURN_IF_ERROR(ReadSlot(source, config.head_dim, slot));
    done += static_cast<double>(slot.rows * std::max<int64_t>(slot.cols, 1));
  }
  if (progress) progress("read weights", 1);
  if (config.tie_word_embeddings && has_head) {
    RETURN_IF_ERROR(DropTiedHead(source.PathOf(list.slots().back().source_index), model));
  }
  return model;
}

std::string DescribeTypes(const TensorSource& source) {
  std::map<std::string, double> elements_of;
  for (const TensorInfo& info : source.tensors()) {
    elements_of[info.type] += static_cast<double>(info.num_elements);
  }
  std::vector<std::pair<double, std::string>> order;
  for (const auto& [type, elements] : elements_of) order.emplace_back(-elements, type);
  std::sort(order.begin(), order.end());
  return absl::StrJoin(order, ", ",
                       [](std::string* out, const std::pair<double, std::string>& item) {
                         out->append(item.second);
                       });
}

}  // namespace fixpoint
