#include "calibrator/import/test_files.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"

namespace fixpoint::testing {
namespace {

std::string GgufString(absl::string_view text) {
  return absl::StrCat(LittleEndian<uint64_t>(text.size()), text);
}

std::string ArrayHead(uint32_t type, uint64_t count) {
  return absl::StrCat(LittleEndian(type), LittleEndian(count));
}

// Distinct, exactly representable values that also differ between tensors.
class Counter {
 public:
  std::vector<float> Take(int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = static_cast<float>(next_++) / 64 - 4;
    return values;
  }
  Matrix TakeMatrix(int64_t rows, int64_t cols) { return {rows, cols, Take(rows * cols)}; }

 private:
  int next_ = 1;
};

// The converter's order: row (h, i, j) of the file is row (h, j, i) of Hugging Face, j = half, i =
// pair.
std::vector<float> Interleave(const Matrix& matrix, int64_t head_dim) {
  std::vector<float> out;
  for (int64_t h = 0; h < matrix.rows / head_dim; ++h) {
    for (int64_t i = 0; i < head_dim / 2; ++i) {
      for (int64_t j = 0; j < 2; ++j) {
        const float* row = matrix.row(h * head_dim + j * head_dim / 2 + i);
        out.insert(out.end(), row, row + matrix.cols);
      }
    }
  }
  return out;
}

constexpr char kTemplate[] = "{{ messages[0]['content'] }}";

}  // namespace

TempDirectory::TempDirectory() {
  std::string pattern = (std::filesystem::temp_directory_path() / "fixpoint_XXXXXX").string();
  CHECK(mkdtemp(pattern.data()) != nullptr) << pattern;
  path_ = pattern;
}

TempDirectory::~TempDirectory() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

std::string TempDirectory::Write(absl::string_view name, absl::string_view bytes) const {
  const std::string path = absl::StrCat(path_, "/", name);
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  CHECK(file.good()) << path;
  return path;
}

std::string FloatBytes(const std::vector<float>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
}

void GgufBuilder::SetRaw(const std::string& key, uint32_t type, std::string bytes) {
  for (Pair& pair : pairs_) {
    if (pair.key != key) continue;
    pair.type = type;
    pair.bytes = std::move(bytes);
    return;
  }
  pairs_.push_back({key, type, std::move(bytes)});
}

void GgufBuilder::Remove(const std::string& key) {
  pairs_.erase(std::remove_if(pairs_.begin(), pairs_.end(),
                              [&key](const Pair& pair) { return pair.key == key; }),
               pairs_.end());
}

void GgufBuilder::SetUint32(const std::string& key, uint32_t value) {
  SetRaw(key, 4, LittleEndian(value));
}
void GgufBuilder::SetFloat32(const std::string& key, float value) {
  SetRaw(key, 6, LittleEndian(value));
}
void GgufBuilder::SetBool(const std::string& key, bool value) {
  SetRaw(key, 7, LittleEndian<uint8_t>(value ? 1 : 0));
}
void GgufBuilder::SetString(const std::string& key, absl::string_view value) {
  SetRaw(key, 8, GgufString(value));
}
void GgufBuilder::SetStrings(const std::string& key, const std::vector<std::string>& values) {
  std::string bytes = ArrayHead(8, values.size());
  for (const std::string& value : values) bytes += GgufString(value);
  SetRaw(key, 9, bytes);
}
void GgufBuilder::SetInt32s(const std::string& key, const std::vector<int32_t>& values) {
  std::string bytes = ArrayHead(5, values.size());
  for (const int32_t value : values) bytes += LittleEndian(value);
  SetRaw(key, 9, bytes);
}
void GgufBuilder::SetFloat32s(const std::string& key, const std::vector<float>& values) {
  SetRaw(key, 9, ArrayHead(6, values.size()) + FloatBytes(values));
}

void GgufBuilder::AddFloatTensor(const std::string& name, std::vector<int64_t> shape,
                                 const std::vector<float>& values) {
  Tensor tensor;
  tensor.name = name;
  tensor.dims.assign(shape.rbegin(), shape.rend());
  tensor.data = FloatBytes(values);
  tensors.push_back(std::move(tensor));
}

GgufBuilder::Tensor* GgufBuilder::Find(const std::string& name) {
  for (Tensor& tensor : tensors) {
    if (tensor.name == name) return &tensor;
  }
  CHECK(false) << name;
  return nullptr;
}

std::string GgufBuilder::Build() {
  borders_.clear();
  std::string out;
  const auto add = [this, &out](absl::string_view bytes) {
    out.append(bytes.data(), bytes.size());
    borders_.push_back(out.size());
  };
  std::vector<Pair> pairs = pairs_;
  if (duplicate_keys_) pairs.push_back(pairs.back());
  add("GGUF");
  add(LittleEndian(version));
  add(LittleEndian<uint64_t>(tensors.size()));
  add(LittleEndian<uint64_t>(pairs.size()));
  for (const Pair& pair : pairs) {
    add(GgufString(pair.key));
    add(LittleEndian(pair.type));
    add(pair.bytes);
  }
  uint64_t offset = 0;
  for (const Tensor& tensor : tensors) {
    add(GgufString(tensor.name));
    add(LittleEndian<uint32_t>(static_cast<uint32_t>(tensor.dims.size())));
    for (const uint64_t dim : tensor.dims) add(LittleEndian(dim));
    add(LittleEndian(tensor.type));
    add(LittleEndian<uint64_t>(offset + static_cast<uint64_t>(tensor.offset_shift)));
    offset += (tensor.data.size() + alignment - 1) / alignment * alignment;
  }
  const auto pad = [&] {
    return std::string((alignment - out.size() % alignment) % alignment, '\0');
  };
  add(pad());
  header_bytes_ = out.size();
  for (size_t i = 0; i < tensors.size(); ++i) {
    add(tensors[i].data);
    if (i + 1 < tensors.size()) add(pad());
  }
  return out;
}

std::string SafetensorsBytes(absl::string_view header, absl::string_view data) {
  return absl::StrCat(LittleEndian<uint64_t>(header.size()), header, data);
}

std::string SafetensorsFile(const std::vector<NamedTensor>& tensors) {
  std::string data;
  std::vector<std::string> entries = {R"("__metadata__":{"format":"pt"})"};
  for (const NamedTensor& tensor : tensors) {
    const size_t begin = data.size();
    data += FloatBytes(tensor.values);
    entries.push_back(absl::StrCat("\"", tensor.name, R"(":{"dtype":"F32","shape":[)",
                                   absl::StrJoin(tensor.shape, ","), R"(],"data_offsets":[)", begin,
                                   ",", data.size(), "]}"));
  }
  return SafetensorsBytes(absl::StrCat("{", absl::StrJoin(entries, ","), "}"), data);
}

FloatModel TinyModel(bool tied, bool biases) {
  FloatModel model;
  FloatConfig& config = model.config;
  config.architecture = biases ? "qwen2" : "llama";
  config.hidden_size = 8;
  config.intermediate_size = 6;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 2;
  config.num_key_value_heads = 1;
  config.head_dim = 4;
  config.vocab_size = 8;
  config.max_position_embeddings = 64;
  config.rms_norm_eps = 0.0009765625;  // the same in float32 and in JSON
  config.rope_theta = 10000;
  config.tie_word_embeddings = tied;
  Counter counter;
  model.embedding = counter.TakeMatrix(8, 8);
  for (int i = 0; i < 2; ++i) {
    FloatLayer layer;
    layer.attn_norm = counter.Take(8);
    layer.q_proj = counter.TakeMatrix(8, 8);
    layer.k_proj = counter.TakeMatrix(4, 8);
    layer.v_proj = counter.TakeMatrix(4, 8);
    if (biases) {
      layer.q_bias = counter.Take(8);
      layer.k_bias = counter.Take(4);
      layer.v_bias = counter.Take(4);
    }
    layer.o_proj = counter.TakeMatrix(8, 8);
    layer.mlp_norm = counter.Take(8);
    layer.gate_proj = counter.TakeMatrix(6, 8);
    layer.up_proj = counter.TakeMatrix(6, 8);
    layer.down_proj = counter.TakeMatrix(8, 6);
    model.layers.push_back(std::move(layer));
  }
  model.final_norm = counter.Take(8);
  if (!tied) model.head = counter.TakeMatrix(8, 8);
  return model;
}

std::vector<NamedTensor> HuggingFaceTensors(const FloatModel& model) {
  std::vector<NamedTensor> tensors;
  const auto matrix = [&tensors](std::string name, const Matrix& m) {
    tensors.push_back({std::move(name), {m.rows, m.cols}, m.data});
  };
  const auto vector = [&tensors](std::string name, const std::vector<float>& v) {
    if (!v.empty()) tensors.push_back({std::move(name), {static_cast<int64_t>(v.size())}, v});
  };
  matrix("model.embed_tokens.weight", model.embedding);
  for (size_t i = 0; i < model.layers.size(); ++i) {
    const FloatLayer& layer = model.layers[i];
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    vector(prefix + "input_layernorm.weight", layer.attn_norm);
    matrix(prefix + "self_attn.q_proj.weight", layer.q_proj);
    matrix(prefix + "self_attn.k_proj.weight", layer.k_proj);
    matrix(prefix + "self_attn.v_proj.weight", layer.v_proj);
    vector(prefix + "self_attn.q_proj.bias", layer.q_bias);
    vector(prefix + "self_attn.k_proj.bias", layer.k_bias);
    vector(prefix + "self_attn.v_proj.bias", layer.v_bias);
    matrix(prefix + "self_attn.o_proj.weight", layer.o_proj);
    vector(prefix + "post_attention_layernorm.weight", layer.mlp_norm);
    matrix(prefix + "mlp.gate_proj.weight", layer.gate_proj);
    matrix(prefix + "mlp.up_proj.weight", layer.up_proj);
    matrix(prefix + "mlp.down_proj.weight", layer.down_proj);
  }
  vector("model.norm.weight", model.final_norm);
  if (model.head.rows != 0) matrix("lm_head.weight", model.head);
  return tensors;
}

std::string HuggingFaceConfig(const FloatModel& model) {
  const FloatConfig& config = model.config;
  const bool qwen2 = config.architecture == "qwen2";
  return absl::StrCat(
      R"({"architectures": [")", qwen2 ? "Qwen2ForCausalLM" : "LlamaForCausalLM",
      R"("], "model_type": ")", qwen2 ? "qwen2" : "llama",
      R"(", "hidden_act": "silu", "hidden_size": )", config.hidden_size,
      R"(, "intermediate_size": )", config.intermediate_size, R"(, "num_hidden_layers": )",
      config.num_hidden_layers, R"(, "num_attention_heads": )", config.num_attention_heads,
      R"(, "num_key_value_heads": )", config.num_key_value_heads, R"(, "vocab_size": )",
      config.vocab_size, R"(, "max_position_embeddings": )", config.max_position_embeddings,
      R"(, "rms_norm_eps": 0.0009765625, "rope_theta": 10000.0, "rope_scaling": null, "eos_token_id": 0, )",
      R"("tie_word_embeddings": )", config.tie_word_embeddings ? "true" : "false", "}");
}

std::string TinyTokenizerJson() {
  return R"({"version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [
      {"id": 0, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
       "normalized": false, "special": true},
      {"id": 1, "content": "<|im_end|>", "single_word": false, "lstrip": false, "rstrip": false,
       "normalized": false, "special": true},
      {"id": 7, "content": "<tool>", "single_word": false, "lstrip": false, "rstrip": false,
       "normalized": false, "special": false}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    "post_processor": null,
    "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
      "vocab": {"<|endoftext|>": 0, "<|im_end|>": 1, "a": 2, "b": 3, "ab": 4, "Ġ": 5, "Ġa": 6},
      "merges": ["a b", "Ġ a"]}})";
}

void SetTinyTokenizer(GgufBuilder* builder) {
  builder->SetString("tokenizer.ggml.model", "gpt2");
  builder->SetString("tokenizer.ggml.pre", "gpt-2");
  builder->SetStrings("tokenizer.ggml.tokens",
                      {"<|endoftext|>", "<|im_end|>", "a", "b", "ab", "Ġ", "Ġa", "<tool>"});
  builder->SetInt32s("tokenizer.ggml.token_type", {3, 3, 1, 1, 1, 1, 1, 4});
  builder->SetStrings("tokenizer.ggml.merges", {"a b", "Ġ a"});
  builder->SetUint32("tokenizer.ggml.eos_token_id", 0);
  builder->SetString("tokenizer.chat_template", kTemplate);
}

GgufBuilder TinyGguf(const FloatModel& model) {
  const FloatConfig& config = model.config;
  const std::string arch = config.architecture;
  GgufBuilder builder;
  builder.SetString("general.architecture", arch);
  builder.SetUint32(arch + ".block_count", static_cast<uint32_t>(config.num_hidden_layers));
  builder.SetUint32(arch + ".context_length",
                    static_cast<uint32_t>(config.max_position_embeddings));
  builder.SetUint32(arch + ".embedding_length", static_cast<uint32_t>(config.hidden_size));
  builder.SetUint32(arch + ".feed_forward_length", static_cast<uint32_t>(config.intermediate_size));
  builder.SetUint32(arch + ".attention.head_count",
                    static_cast<uint32_t>(config.num_attention_heads));
  builder.SetUint32(arch + ".attention.head_count_kv",
                    static_cast<uint32_t>(config.num_key_value_heads));
  builder.SetFloat32(arch + ".attention.layer_norm_rms_epsilon",
                     static_cast<float>(config.rms_norm_eps));
  builder.SetFloat32(arch + ".rope.freq_base", static_cast<float>(config.rope_theta));
  SetTinyTokenizer(&builder);

  const auto matrix = [&builder](const std::string& name, const Matrix& m) {
    builder.AddFloatTensor(name, {m.rows, m.cols}, m.data);
  };
  const auto vector = [&builder](const std::string& name, const std::vector<float>& v) {
    if (!v.empty()) builder.AddFloatTensor(name, {static_cast<int64_t>(v.size())}, v);
  };
  const auto rotated = [&](const std::string& name, const Matrix& m) {
    builder.AddFloatTensor(name, {m.rows, m.cols},
                           arch == "llama" ? Interleave(m, config.head_dim) : m.data);
  };
  matrix("token_embd.weight", model.embedding);
  for (size_t i = 0; i < model.layers.size(); ++i) {
    const FloatLayer& layer = model.layers[i];
    const std::string prefix = absl::StrCat("blk.", i, ".");
    vector(prefix + "attn_norm.weight", layer.attn_norm);
    rotated(prefix + "attn_q.weight", layer.q_proj);
    rotated(prefix + "attn_k.weight", layer.k_proj);
    matrix(prefix + "attn_v.weight", layer.v_proj);
    vector(prefix + "attn_q.bias", layer.q_bias);
    vector(prefix + "attn_k.bias", layer.k_bias);
    vector(prefix + "attn_v.bias", layer.v_bias);
    matrix(prefix + "attn_output.weight", layer.o_proj);
    vector(prefix + "ffn_norm.weight", layer.mlp_norm);
    matrix(prefix + "ffn_gate.weight", layer.gate_proj);
    matrix(prefix + "ffn_up.weight", layer.up_proj);
    matrix(prefix + "ffn_down.weight", layer.down_proj);
  }
  vector("output_norm.weight", model.final_norm);
  if (model.head.rows != 0) matrix("output.weight", model.head);
  return builder;
}

void WriteHuggingFace(const TempDirectory& directory, const FloatModel& model) {
  directory.Write("config.json", HuggingFaceConfig(model));
  directory.Write("tokenizer.json", TinyTokenizerJson());
  directory.Write("model.safetensors", SafetensorsFile(HuggingFaceTensors(model)));
}

}  // namespace fixpoint::testing
