#include "calibrator/import/compressed_tensors_reader.h"

#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"

namespace fixpoint {
namespace {

constexpr int64_t kReadElements = 1 << 18;

template <typename Value>
absl::Status Unsupported(const JsonObject& object, absl::string_view key, const Value& value,
                         absl::string_view supported) {
  return absl::UnimplementedError(absl::StrCat(object.place(), ": ", key, ": ", value,
                                               " is not supported (", supported, " is)"));
}

absl::Status RequireText(const JsonObject& object, absl::string_view key, absl::string_view wanted,
                         bool required = true) {
  ASSIGN_OR_RETURN(const std::optional<std::string> value, object.FindString(key));
  if (!value.has_value()) return required ? object.Error(key, "is missing") : absl::OkStatus();
  if (*value == wanted) return absl::OkStatus();
  return Unsupported(object, key, absl::StrCat("\"", absl::CHexEscape(*value), "\""), wanted);
}

absl::Status RefuseKey(const JsonObject& object, absl::string_view key) {
  if (!object.Find(key).has_value()) return absl::OkStatus();
  return Unsupported(object, key, "a value", "null");
}

// Symmetric int8; the strategy and whether it is dynamic are the caller's to judge.
struct Args {
  std::string strategy;
  bool dynamic = false;
};

absl::StatusOr<Args> ParseArgs(const JsonObject& args, absl::string_view default_strategy) {
  ASSIGN_OR_RETURN(const std::optional<int64_t> bits, args.FindInt("num_bits"));
  if (bits.value_or(8) != 8) return Unsupported(args, "num_bits", *bits, "8");
  RETURN_IF_ERROR(RequireText(args, "type", "int", /*required=*/false));
  ASSIGN_OR_RETURN(const std::optional<bool> symmetric, args.FindBool("symmetric"));
  if (!symmetric.value_or(true)) return Unsupported(args, "symmetric", "false", "true");
  for (const absl::string_view key : {"group_size", "actorder", "block_structure"})
    RETURN_IF_ERROR(RefuseKey(args, key));
  ASSIGN_OR_RETURN(const std::optional<std::string> strategy, args.FindString("strategy"));
  // Also "local" in other formats, which is no boolean and an error here.
  ASSIGN_OR_RETURN(const std::optional<bool> dynamic, args.FindBool("dynamic"));
  return Args{.strategy = strategy.value_or(std::string(default_strategy)),
              .dynamic = dynamic.value_or(false)};
}

absl::Status CheckGroup(const JsonObject& group) {
  RETURN_IF_ERROR(RequireText(group, "format", "int-quantized", /*required=*/false));
  RETURN_IF_ERROR(RefuseKey(group, "output_activations"));
  ASSIGN_OR_RETURN(const std::optional<JsonObject> weights, group.FindObject("weights"));
  if (!weights.has_value()) return group.Error("weights", "is missing");
  ASSIGN_OR_RETURN(const Args w, ParseArgs(*weights, "tensor"));
  if (w.dynamic) return Unsupported(*weights, "dynamic", "true", "false");
  if (w.strategy != "channel" && w.strategy != "tensor") {
    return Unsupported(*weights, "strategy", absl::StrCat("\"", absl::CHexEscape(w.strategy), "\""),
                       "channel or tensor");
  }
  ASSIGN_OR_RETURN(const std::optional<JsonObject> inputs, group.FindObject("input_activations"));
  if (!inputs.has_value()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const Args x, ParseArgs(*inputs, "tensor"));
  if ((x.strategy == "tensor" && !x.dynamic) || (x.strategy == "token" && x.dynamic))
    return absl::OkStatus();
  return Unsupported(
      *inputs, "strategy",
      absl::StrCat("\"", absl::CHexEscape(x.strategy), x.dynamic ? "\", dynamic," : "\", static,"),
      "static tensor or dynamic token");
}

// SUFFIX taken off a tensor's name, nothing where it does not end so.
std::optional<std::string> LayerOf(const std::string& name, absl::string_view suffix) {
  absl::string_view rest = name;
  if (!absl::ConsumeSuffix(&rest, suffix)) return std::nullopt;
  return std::string(rest);
}

absl::StatusOr<std::vector<float>> ReadScales(const Safetensors& files, size_t index) {
  const TensorInfo& info = files.tensors()[index];
  std::vector<float> scales(static_cast<size_t>(info.num_elements));
  RETURN_IF_ERROR(files.Read(index, absl::MakeSpan(scales)));
  for (size_t i = 0; i < scales.size(); ++i) {
    if (scales[i] > 0) continue;
    return absl::InvalidArgumentError(absl::StrCat(files.PathOf(index), ": tensor ",
                                                   absl::CHexEscape(info.name), ": scale ", i,
                                                   " is ", scales[i], ", must be positive"));
  }
  return scales;
}

bool IsScaleShape(const std::vector<int64_t>& shape, int64_t rows, int64_t count) {
  if (count == 1) return shape.size() <= 2;  // one scale for all
  return count == rows && !shape.empty() && shape.size() <= 2 && shape[0] == rows;
}

}  // namespace

absl::Status CheckCompressedTensorsConfig(const JsonObject& quantization) {
  RETURN_IF_ERROR(RequireText(quantization, "quant_method", "compressed-tensors"));
  RETURN_IF_ERROR(RequireText(quantization, "format", "int-quantized"));
  RETURN_IF_ERROR(
      RequireText(quantization, "quantization_status", "compressed", /*required=*/false));
  RETURN_IF_ERROR(RefuseKey(quantization, "kv_cache_scheme"));
  for (const absl::string_view key : {"sparsity_config", "transform_config"}) {
    ASSIGN_OR_RETURN(const std::optional<JsonObject> config, quantization.FindObject(key));
    if (!config.has_value() || config->object().size() == 0) continue;
    if (key == "transform_config") return Unsupported(quantization, key, "a value", "null");
    RETURN_IF_ERROR(RequireText(*config, "format", "dense"));
  }
  ASSIGN_OR_RETURN(const std::optional<JsonObject> groups,
                   quantization.FindObject("config_groups"));
  if (!groups.has_value() || groups->object().size() == 0)
    return quantization.Error("config_groups", "is missing");
  for (const simdjson::dom::key_value_pair field : groups->object()) {
    const absl::string_view name(field.key.data(), field.key.size());
    simdjson::dom::object group;
    if (field.value.get(group)) return groups->Error(absl::CHexEscape(name), "is not an object");
    RETURN_IF_ERROR(
        CheckGroup(JsonObject(group, absl::StrCat(groups->place(), ": ", absl::CHexEscape(name)))));
  }
  return absl::OkStatus();
}

absl::StatusOr<CompressedTensorsSource> CompressedTensorsSource::Create(const Safetensors& files) {
  CompressedTensorsSource source(files);
  const std::vector<TensorInfo>& all = files.tensors();
  const auto error = [&](size_t index, absl::string_view message) {
    return absl::InvalidArgumentError(absl::StrCat(
        files.PathOf(index), ": tensor ", absl::CHexEscape(all[index].name), ": ", message));
  };
  absl::flat_hash_map<std::string, size_t> weight_scale_of;  // by layer
  for (size_t i = 0; i < all.size(); ++i) {
    if (absl::EndsWith(all[i].name, "_zero_point")) {
      return absl::UnimplementedError(
          absl::StrCat(files.PathOf(i), ": tensor ", absl::CHexEscape(all[i].name),
                       ": zero points are not supported (symmetric schemes are)"));
    }
    if (const auto layer = LayerOf(all[i].name, ".weight_scale")) {
      weight_scale_of.emplace(*layer, i);
    } else if (const auto layer = LayerOf(all[i].name, ".input_scale")) {
      if (all[i].num_elements != 1) {
        return error(i, absl::StrCat("shape ", ShapeText(all[i].shape),
                                     ", one scale of the whole input is expected"));
      }
      ASSIGN_OR_RETURN(const std::vector<float> scales, ReadScales(files, i));
      source.input_scales_.emplace(*layer, scales[0]);
    }
  }
  for (size_t i = 0; i < all.size(); ++i) {
    if (absl::EndsWith(all[i].name, ".weight_scale") || absl::EndsWith(all[i].name, ".input_scale"))
      continue;
    Placement placement{.file_index = i, .scales = {}};
    if (all[i].type == "I8") {
      const auto layer = LayerOf(all[i].name, ".weight");
      const auto found = layer ? weight_scale_of.find(*layer) : weight_scale_of.end();
      if (found == weight_scale_of.end()) return error(i, "int8 weights without a weight_scale");
      const TensorInfo& scale = all[found->second];
      if (all[i].shape.size() != 2 ||
          !IsScaleShape(scale.shape, all[i].shape[0], scale.num_elements)) {
        return error(found->second,
                     absl::StrCat("shape ", ShapeText(scale.shape), " beside weights of shape ",
                                  ShapeText(all[i].shape)));
      }
      ASSIGN_OR_RETURN(placement.scales, ReadScales(files, found->second));
      weight_scale_of.erase(found);
    }
    source.tensors_.push_back(all[i]);
    source.placements_.push_back(std::move(placement));
  }
  if (!weight_scale_of.empty()) {
    return error(weight_scale_of.begin()->second, "a scale without int8 weights");
  }
  return source;
}

absl::Status CompressedTensorsSource::Read(size_t index, absl::Span<float> out) const {
  const Placement& placement = placements_[index];
  if (placement.scales.empty()) return files_->Read(placement.file_index, out);
  const int64_t cols = tensors_[index].shape[1];
  std::vector<int8_t> piece(
      static_cast<size_t>(std::min<int64_t>(tensors_[index].num_elements, kReadElements)));
  for (int64_t first = 0; first < tensors_[index].num_elements; first += kReadElements) {
    const int64_t count = std::min(kReadElements, tensors_[index].num_elements - first);
    RETURN_IF_ERROR(files_->ReadInt8(placement.file_index, first,
                                     absl::MakeSpan(piece).subspan(0, static_cast<size_t>(count))));
    for (int64_t i = 0; i < count; ++i) {
      const size_t row = placement.scales.size() == 1 ? 0 : static_cast<size_t>((first + i) / cols);
      out[static_cast<size_t>(first + i)] =
          static_cast<float>(piece[static_cast<size_t>(i)]) * placement.scales[row];
    }
  }
  return absl::OkStatus();
}

}  // namespace fixpoint
