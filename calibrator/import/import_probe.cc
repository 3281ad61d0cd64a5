// What the importer makes of a checkpoint, as JSON for tests/import_test.py; and raw dequantization
// for tests/dequantize_test.py.
//
//   import_probe MODEL                  configuration, tokenizer figures, and the SHA-256 of every
//   tensor's float32 bytes import_probe --tokenizer MODEL      tokenizer figures only import_probe
//   --dequantize TYPE_ID   encoded blocks on standard input, float32 on standard output
#include <chrono>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/digest.h"
#include "calibrator/import/checkpoint.h"
#include "calibrator/import/dequantize.h"

namespace fixpoint {
namespace {

int Fail(const absl::Status& status) {
  std::cerr << "import_probe: " << status << "\n";
  return 1;
}

int RunDequantize(const std::string& type_id) {
  uint32_t id = 0;
  std::optional<WeightType> type;
  if (absl::SimpleAtoi(type_id, &id)) type = WeightTypeFromGgufId(id);
  if (!type.has_value()) {
    return Fail(
        absl::InvalidArgumentError(absl::StrCat("weight type ", type_id, " is not supported")));
  }
  const std::vector<char> input((std::istreambuf_iterator<char>(std::cin)),
                                std::istreambuf_iterator<char>());
  const BlockSize block = BlockSizeOf(*type);
  const size_t block_bytes = static_cast<size_t>(block.bytes);
  if (input.size() % block_bytes != 0) {
    return Fail(absl::InvalidArgumentError(
        absl::StrCat(input.size(), " bytes are no multiple of ", block_bytes)));
  }
  std::vector<float> values(input.size() / block_bytes * static_cast<size_t>(block.elements));
  Dequantize(*type,
             absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(input.data()), input.size()),
             absl::MakeSpan(values));
  std::fwrite(values.data(), sizeof(float), values.size(), stdout);
  return std::fflush(stdout) == 0 ? 0 : 1;
}

void PrintDigest(absl::string_view name, const std::vector<float>& values, bool last = false) {
  const std::string digest = Sha256Hex(absl::string_view(
      reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)));
  std::cout << "  \"" << name << "\": \"" << digest << "\"" << (last ? "\n" : ",\n");
}

void PrintTokenizer(const TokenizerSpec& spec, const std::string& chat_template) {
  std::cout << "\"kind\": " << static_cast<int>(spec.kind)
            << ", \"pre_tokenizer\": " << static_cast<int>(spec.pre_tokenizer)
            << ", \"tokens\": " << spec.tokens.size() << ", \"merges\": " << spec.merges.size()
            << ", \"added\": " << spec.added.size() << ", \"bos_id\": " << spec.bos_id
            << ", \"add_bos\": " << (spec.add_bos ? "true" : "false") << ", \"eos_ids\": ["
            << absl::StrJoin(spec.eos_ids, ", ") << "]"
            << ", \"chat_template_sha256\": \"" << Sha256Hex(chat_template) << "\"";
}

int RunTokenizer(const std::string& path) {
  const absl::StatusOr<TokenizerAndTemplate> result = ImportTokenizer(path);
  if (!result.ok()) return Fail(result.status());
  std::cout << "{";
  PrintTokenizer(result->tokenizer, result->chat_template);
  std::cout << "}\n";
  return 0;
}

void PrintTensors(const FloatModel& model) {
  std::cout << "\"tensors\": {\n";
  PrintDigest("model.embed_tokens.weight", model.embedding.data);
  for (size_t i = 0; i < model.layers.size(); ++i) {
    const FloatLayer& layer = model.layers[i];
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    PrintDigest(prefix + "input_layernorm.weight", layer.attn_norm);
    PrintDigest(prefix + "self_attn.q_proj.weight", layer.q_proj.data);
    PrintDigest(prefix + "self_attn.k_proj.weight", layer.k_proj.data);
    PrintDigest(prefix + "self_attn.v_proj.weight", layer.v_proj.data);
    if (!layer.q_bias.empty()) PrintDigest(prefix + "self_attn.q_proj.bias", layer.q_bias);
    if (!layer.k_bias.empty()) PrintDigest(prefix + "self_attn.k_proj.bias", layer.k_bias);
    if (!layer.v_bias.empty()) PrintDigest(prefix + "self_attn.v_proj.bias", layer.v_bias);
    PrintDigest(prefix + "self_attn.o_proj.weight", layer.o_proj.data);
    PrintDigest(prefix + "post_attention_layernorm.weight", layer.mlp_norm);
    PrintDigest(prefix + "mlp.gate_proj.weight", layer.gate_proj.data);
    PrintDigest(prefix + "mlp.up_proj.weight", layer.up_proj.data);
    PrintDigest(prefix + "mlp.down_proj.weight", layer.down_proj.data);
  }
  if (model.head.rows != 0) PrintDigest("lm_head.weight", model.head.data);
  PrintDigest("model.norm.weight", model.final_norm, /*last=*/true);
  std::cout << "}";
}

int RunImport(const std::string& path) {
  const auto start = std::chrono::steady_clock::now();
  const absl::StatusOr<Checkpoint> checkpoint = ImportCheckpoint(path, nullptr);
  if (!checkpoint.ok()) return Fail(checkpoint.status());
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const FloatModel& model = checkpoint->model;
  const FloatConfig& config = model.config;
  std::cout.precision(17);
  std::cout << "{\"config\": {\"architecture\": \"" << config.architecture
            << "\", \"hidden_size\": " << config.hidden_size
            << ", \"intermediate_size\": " << config.intermediate_size
            << ", \"num_hidden_layers\": " << config.num_hidden_layers
            << ", \"num_attention_heads\": " << config.num_attention_heads
            << ", \"num_key_value_heads\": " << config.num_key_value_heads
            << ", \"head_dim\": " << config.head_dim << ", \"vocab_size\": " << config.vocab_size
            << ", \"max_position_embeddings\": " << config.max_position_embeddings
            << ", \"rms_norm_eps\": " << config.rms_norm_eps
            << ", \"rope_theta\": " << config.rope_theta
            << ", \"tie_word_embeddings\": " << (config.tie_word_embeddings ? "true" : "false")
            << "},\n\"rope_inverse_frequency\": ["
            << absl::StrJoin(model.rope_inverse_frequency, ", ",
                             [](std::string* out, double value) {
                               char text[32];
                               std::snprintf(text, sizeof(text), "%.17g", value);
                               out->append(text);
                             })
            << "],\n\"tokenizer\": {";
  PrintTokenizer(checkpoint->tokenizer, checkpoint->chat_template);
  std::cout << "},\n\"source_format\": \"" << checkpoint->source_format
            << "\", \"source_types\": \"" << checkpoint->source_types << "\", \"source_sha256\": \""
            << checkpoint->source_sha256 << "\", \"seconds\": " << seconds << ",\n";
  PrintTensors(model);
  std::cout << ",\n\"input_scales\": {"
            << absl::StrJoin(checkpoint->input_scales, ", ",
                             [](std::string* out, const std::pair<const std::string, float>& item) {
                               char text[32];
                               std::snprintf(text, sizeof(text), "%.9g", item.second);
                               absl::StrAppend(out, "\"", item.first, "\": ", text);
                             })
            << "}}\n";
  return 0;
}

}  // namespace
}  // namespace fixpoint

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() == 1) return fixpoint::RunImport(arguments[0]);
  if (arguments.size() == 2 && arguments[0] == "--tokenizer") {
    return fixpoint::RunTokenizer(arguments[1]);
  }
  if (arguments.size() == 2 && arguments[0] == "--dequantize") {
    return fixpoint::RunDequantize(arguments[1]);
  }
  std::cerr << "usage: import_probe [--tokenizer] MODEL | --dequantize TYPE_ID\n";
  return 2;
}
