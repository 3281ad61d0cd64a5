#include "calibrator/export/compressed_tensors.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "calibrator/export/hf_config.h"
#include "calibrator/export/safetensors_writer.h"
#include "calibrator/export/tokenizer_files.h"

namespace fixpoint {
namespace {

constexpr uint64_t kMaxCopiedBytes = 128 << 20;  // the largest published tokenizer.json has 35 MB
constexpr uint64_t kMaxConfigBytes = 16 << 20;

// Taken over from a source directory where they exist.
constexpr const char* kCopied[] = {"tokenizer.json",
                                   "tokenizer_config.json",
                                   "special_tokens_map.json",
                                   "added_tokens.json",
                                   "vocab.json",
                                   "merges.txt",
                                   "tokenizer.model",
                                   "chat_template.jinja",
                                   "chat_template.json",
                                   "generation_config.json",
                                   "LICENSE",
                                   "LICENSE.txt",
                                   "LICENSE.md",
                                   "NOTICE",
                                   "NOTICE.txt",
                                   "USE_POLICY.md"};

// A tensor and how it is written.
struct Item {
  SafetensorsEntry entry;
  std::function<absl::Status(const std::string& name, SafetensorsWriter& writer)> write;
};

class ItemList {
 public:
  void Float32(std::string name, std::vector<int64_t> shape, absl::Span<const float> values) {
    Add(std::move(name), SafetensorsDtype::kFloat32, std::move(shape),
        [values](const std::string& n, SafetensorsWriter& w) { return w.Float32(n, values); });
  }
  void Bf16(std::string name, std::vector<int64_t> shape, const std::vector<float>& values) {
    Add(std::move(name), SafetensorsDtype::kBf16, std::move(shape),
        [&values](const std::string& n, SafetensorsWriter& w) { return w.Bf16(n, values); });
  }
  void Bf16(std::string name, const Matrix& m) { Bf16(std::move(name), {m.rows, m.cols}, m.data); }
  void Bf16(std::string name, const std::vector<float>& values) {
    Bf16(std::move(name), {static_cast<int64_t>(values.size())}, values);
  }
  void Int8(std::string name, const IntegerLinear& linear) {
    Add(std::move(name), SafetensorsDtype::kInt8, {linear.outputs, linear.depth},
        [&linear](const std::string& n, SafetensorsWriter& w) { return w.Int8(n, linear.values); });
  }

  // Wide types first, so that all data is aligned; names in order.
  std::vector<Item> Take() {
    std::sort(items_.begin(), items_.end(), [](const Item& a, const Item& b) {
      return std::make_pair(a.entry.dtype, a.entry.name) <
             std::make_pair(b.entry.dtype, b.entry.name);
    });
    return std::move(items_);
  }

 private:
  void Add(std::string name, SafetensorsDtype dtype, std::vector<int64_t> shape,
           std::function<absl::Status(const std::string&, SafetensorsWriter&)> write) {
    items_.push_back({{std::move(name), dtype, std::move(shape)}, std::move(write)});
  }
  std::vector<Item> items_;
};

void AddLayer(const ExportModel& model, int32_t index, ItemList* list) {
  const FloatLayer& layer = model.model.layers[static_cast<size_t>(index)];
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  list->Bf16(prefix + "input_layernorm.weight", layer.attn_norm);
  list->Bf16(prefix + "post_attention_layernorm.weight", layer.mlp_norm);
  for (int32_t i = 0; i < kExportLinears; ++i) {
    const ExportLinear& linear = kExportLinearList[i];
    const ExportSite& site =
        model.sites[static_cast<size_t>(index)][static_cast<int32_t>(linear.site)];
    const std::string name = LinearName(index, linear);
    if (linear.bias != nullptr && !(layer.*linear.bias).empty())
      list->Bf16(name + ".bias", layer.*linear.bias);
    if (!site.quantized) {
      list->Bf16(name + ".weight", layer.*linear.weights);
      continue;
    }
    const IntegerLinear& integers = model.integers[static_cast<size_t>(index)][i];
    list->Int8(name + ".weight", integers);
    list->Float32(name + ".weight_scale", {integers.outputs, 1}, integers.steps);
    // Members of a fused group have the same one: servers keep a single slot for all.
    list->Float32(name + ".input_scale", {1}, absl::MakeConstSpan(&site.scale, 1));
  }
}

absl::Status WriteWeights(const CompressedTensorsFiles& files, const std::string& path) {
  const ExportModel& model = *files.model;
  ItemList list;
  list.Bf16("model.embed_tokens.weight", model.model.embedding);
  list.Bf16("lm_head.weight", model.model.head);
  list.Bf16("model.norm.weight", model.model.final_norm);
  for (size_t i = 0; i < model.model.layers.size(); ++i)
    AddLayer(model, static_cast<int32_t>(i), &list);
  const std::vector<Item> items = list.Take();
  std::vector<SafetensorsEntry> entries;
  for (const Item& item : items) entries.push_back(item.entry);
  const std::map<std::string, std::string> metadata = {
      {"format", "pt"},
      {"fixpoint.version", FIXPOINT_VERSION},
      {"fixpoint.source", files.source_name},
      {"fixpoint.source_sha256", files.source_sha256},
      {"fixpoint.bundle", files.bundle_name},
      {"fixpoint.bundle_sha256", files.bundle_digest},
      {"fixpoint.figures", files.figures},
      {"fixpoint.not_carried", absl::StrJoin(files.not_carried, "\n")}};
  ASSIGN_OR_RETURN(SafetensorsWriter writer,
                   SafetensorsWriter::Create(path, std::move(entries), metadata));
  for (const Item& item : items) RETURN_IF_ERROR(item.write(item.entry.name, writer));
  return writer.Finish();
}

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

absl::Status WriteConfig(const CompressedTensorsFiles& files, const std::string& path) {
  const std::string quantization = QuantizationConfigJson(IgnoredModules(*files.model));
  std::string config;
  if (files.source_directory.empty()) {
    ASSIGN_OR_RETURN(config, ConfigFromModel(files.model->model, *files.tokenizer, quantization));
  } else {
    const std::string original = absl::StrCat(files.source_directory, "/config.json");
    ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(original, kMaxConfigBytes));
    ASSIGN_OR_RETURN(config, ConfigFromOriginal(text, original, quantization));
  }
  return WriteFileAtomically(path, config + "\n");
}

absl::Status WriteTokenizer(const CompressedTensorsFiles& files, const std::string& directory) {
  if (files.source_directory.empty()) {
    ASSIGN_OR_RETURN(const std::string json, WriteTokenizerJson(*files.tokenizer));
    RETURN_IF_ERROR(WriteFileAtomically(directory + "/tokenizer.json", json));
    RETURN_IF_ERROR(WriteFileAtomically(
        directory + "/tokenizer_config.json",
        WriteTokenizerConfig(*files.tokenizer, files.chat_template,
                             files.model->model.config.max_position_embeddings)));
  } else {
    for (const char* name : kCopied) {
      const std::string from = absl::StrCat(files.source_directory, "/", name);
      if (!Exists(from)) continue;
      ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(from, kMaxCopiedBytes));
      RETURN_IF_ERROR(WriteFileAtomically(absl::StrCat(directory, "/", name), text));
    }
  }
  const std::string generation = directory + "/generation_config.json";
  if (Exists(generation)) return absl::OkStatus();
  return WriteFileAtomically(generation, GenerationConfigJson(*files.tokenizer));
}

std::string Readme(const CompressedTensorsFiles& files) {
  std::string text = absl::StrCat(
      "# ", files.source_name, ", static W8A8\n\n",
      "Symmetric int8 weights per output channel, symmetric int8 inputs with one static scale per "
      "tensor, in the compressed-tensors format. Written by `fixpoint-calibrate export` (version ",
      FIXPOINT_VERSION, ") from `", files.source_name, "` (SHA-256 ", files.source_sha256,
      ") and the bundle `", files.bundle_name, "` (digest ", files.bundle_digest, ").\n\n",
      "## Measured\n\n", files.figures, "\n## What the bundle has and this checkpoint has not\n\n");
  for (const std::string& sentence : files.not_carried)
    absl::StrAppend(&text, "- ", sentence, "\n");
  absl::StrAppend(
      &text,
      "\n## Serving\n\n```\nvllm serve .\n```\n\nNeeds a GPU with int8 tensor cores (SM "
      "7.5 to 9.0) or vLLM's CPU build. This recipe was not run when the checkpoint was "
      "written.\n");
  return text;
}

}  // namespace

std::vector<std::string> IgnoredModules(const ExportModel& model) {
  std::vector<std::string> names = {"lm_head"};
  for (size_t layer = 0; layer < model.sites.size(); ++layer) {
    for (const ExportLinear& linear : kExportLinearList) {
      if (!model.sites[layer][static_cast<int32_t>(linear.site)].quantized)
        names.push_back(LinearName(static_cast<int32_t>(layer), linear));
    }
  }
  return names;
}

absl::StatusOr<uint64_t> WriteCompressedTensors(const CompressedTensorsFiles& files,
                                                const std::string& directory) {
  RETURN_IF_ERROR(WriteConfig(files, directory + "/config.json"));
  RETURN_IF_ERROR(WriteTokenizer(files, directory));
  RETURN_IF_ERROR(WriteWeights(files, directory + "/model.safetensors"));
  RETURN_IF_ERROR(WriteFileAtomically(directory + "/README.md", Readme(files)));
  uint64_t bytes = 0;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    const uintmax_t size = entry.file_size(error);
    if (!error) bytes += size;
  }
  if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat(directory, ": cannot be read"));
  return bytes;
}

}  // namespace fixpoint
