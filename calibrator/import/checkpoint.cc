#include "calibrator/import/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "calibrator/import/compressed_tensors_reader.h"
#include "calibrator/import/gguf_checkpoint.h"
#include "calibrator/import/gguf_reader.h"
#include "calibrator/import/hf_checkpoint.h"
#include "calibrator/import/rope.h"
#include "calibrator/import/safetensors_reader.h"
#include "calibrator/import/tokenizer_json.h"

namespace fixpoint {
namespace {

constexpr uint64_t kJsonBytesMax = 16 << 20;
constexpr uint64_t kTokenizerJsonBytesMax = 128 << 20;  // the largest published ones have 35 MB

std::string FileName(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

bool IsDirectory(const std::string& path) {
  std::error_code error;
  return std::filesystem::is_directory(path, error);
}

void Report(const ImportProgress& progress, absl::string_view stage, double fraction) {
  if (progress) progress(std::string_view(stage.data(), stage.size()), fraction);
}

// A directory whose small files are read by name; remembers which ones were there, for the digest.
class Directory {
 public:
  explicit Directory(std::string path) : path_(std::move(path)) {}

  const std::string& path() const { return path_; }
  std::string Path(absl::string_view name) const { return absl::StrCat(path_, "/", name); }

  // Nothing where the file does not exist.
  absl::StatusOr<std::optional<std::string>> ReadOptional(absl::string_view name,
                                                          uint64_t max_bytes) {
    absl::StatusOr<RandomAccessFile> file = RandomAccessFile::Open(Path(name));
    if (absl::IsNotFound(file.status())) return std::nullopt;
    RETURN_IF_ERROR(file.status());
    ASSIGN_OR_RETURN(std::string text, file->ReadAll(max_bytes));
    paths_.push_back(Path(name));
    return text;
  }

  absl::StatusOr<std::string> Read(absl::string_view name, uint64_t max_bytes) {
    ASSIGN_OR_RETURN(std::optional<std::string> text, ReadOptional(name, max_bytes));
    if (!text.has_value()) return absl::NotFoundError(absl::StrCat(Path(name), ": does not exist"));
    return *std::move(text);
  }

  void AddPaths(const std::vector<std::string>& paths) {
    paths_.insert(paths_.end(), paths.begin(), paths.end());
  }

  absl::StatusOr<std::string> Sha256(const ImportProgress& progress) const {
    std::map<std::string, std::string> path_of;  // sorted by name
    for (const std::string& path : paths_) path_of.emplace(FileName(path), path);
    std::string lines;
    size_t done = 0;
    for (const auto& [name, path] : path_of) {
      Report(progress, "hash", static_cast<double>(done++) / static_cast<double>(path_of.size()));
      ASSIGN_OR_RETURN(const RandomAccessFile file, RandomAccessFile::Open(path));
      ASSIGN_OR_RETURN(const std::string digest, file.Sha256Hex());
      absl::StrAppend(&lines, digest, "  ", name, "\n");
    }
    Report(progress, "hash", 1);
    return Sha256Hex(lines);
  }

 private:
  std::string path_;
  std::vector<std::string> paths_;
};

absl::Status CheckEosIds(const TokenizerSpec& spec, const std::string& place) {
  for (const int32_t id : spec.eos_ids) {
    if (id < 0 || static_cast<size_t>(id) >= spec.tokens.size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          place, ": eos_token_id ", id, " is no token, there are ", spec.tokens.size()));
    }
  }
  return absl::OkStatus();
}

// `tokenizer_name` is the file that holds tokenizer.json; `config_eos_ids` those of config.json.
absl::StatusOr<TokenizerAndTemplate> ReadHfTokenizer(Directory& directory,
                                                     const std::string& tokenizer_name,
                                                     std::vector<int32_t> config_eos_ids) {
  ASSIGN_OR_RETURN(const std::string json, directory.Read(tokenizer_name, kTokenizerJsonBytesMax));
  ASSIGN_OR_RETURN(const std::optional<std::string> config,
                   directory.ReadOptional("tokenizer_config.json", kJsonBytesMax));
  TokenizerAndTemplate result;
  absl::StatusOr<TokenizerSpec> spec = ParseTokenizerJson(json, config.value_or(""));
  if (!spec.ok()) return Annotate(spec.status(), directory.path());  // the message names the file
  result.tokenizer = *std::move(spec);

  std::vector<int32_t> eos_ids = std::move(config_eos_ids);
  std::string eos_place = directory.Path("config.json");
  ASSIGN_OR_RETURN(const std::optional<std::string> generation,
                   directory.ReadOptional("generation_config.json", kJsonBytesMax));
  if (generation.has_value()) {
    const std::string place = directory.Path("generation_config.json");
    ASSIGN_OR_RETURN(std::vector<int32_t> overriding, ParseHfEosIds(*generation, place));
    if (!overriding.empty()) {
      eos_ids = std::move(overriding);
      eos_place = place;
    }
  }
  if (!eos_ids.empty()) result.tokenizer.eos_ids = std::move(eos_ids);
  AppendWellKnownEosIds(&result.tokenizer);
  RETURN_IF_ERROR(CheckEosIds(result.tokenizer, eos_place));
  RETURN_IF_ERROR(Annotate(ValidateTokenizerSpec(result.tokenizer), directory.path()));

  ASSIGN_OR_RETURN(std::optional<std::string> jinja,
                   directory.ReadOptional("chat_template.jinja", kJsonBytesMax));
  if (jinja.has_value()) {
    result.chat_template = *std::move(jinja);
  } else if (config.has_value()) {
    ASSIGN_OR_RETURN(result.chat_template,
                     ParseHfChatTemplate(*config, directory.Path("tokenizer_config.json")));
  }
  return result;
}

absl::Status CheckVocabulary(const Checkpoint& checkpoint, const std::string& path,
                             const ImportProgress& progress) {
  const int64_t rows = checkpoint.model.config.vocab_size;
  const int64_t tokens = static_cast<int64_t>(checkpoint.tokenizer.tokens.size());
  if (tokens > rows) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": the tokenizer has ", tokens,
                                                   " tokens, the embedding only ", rows, " rows"));
  }
  if (tokens < rows) {
    Report(progress,
           absl::StrCat("vocabulary: ", tokens, " tokens, ", rows - tokens, " padding rows"), 1);
  }
  return absl::OkStatus();
}

absl::StatusOr<Checkpoint> ImportGguf(const std::string& path, const ImportProgress& progress) {
  Report(progress, "read metadata", 0);
  ASSIGN_OR_RETURN(const GgufFile gguf, GgufFile::Open(path));
  ASSIGN_OR_RETURN(const FloatConfig config, ParseGgufConfig(gguf));
  Checkpoint checkpoint;
  checkpoint.source_format = "gguf";
  checkpoint.source_types = DescribeTypes(gguf);
  ASSIGN_OR_RETURN(checkpoint.tokenizer, ParseGgufTokenizer(gguf));
  ASSIGN_OR_RETURN(checkpoint.chat_template, ParseGgufChatTemplate(gguf));
  checkpoint.model.config = config;
  RETURN_IF_ERROR(CheckVocabulary(checkpoint, path, progress));
  Report(progress, "hash", 0);
  ASSIGN_OR_RETURN(checkpoint.source_sha256, gguf.file().Sha256Hex());
  Report(progress, "hash", 1);
  ASSIGN_OR_RETURN(checkpoint.model,
                   ReadLlamaWeights(config, gguf, CheckpointFormat::kGguf, progress));
  ASSIGN_OR_RETURN(checkpoint.model.rope_inverse_frequency, ParseGgufRope(gguf, config));
  return checkpoint;
}

absl::StatusOr<Checkpoint> ImportDirectory(const std::string& path,
                                           const ImportProgress& progress) {
  Report(progress, "read metadata", 0);
  Directory directory(path);
  ASSIGN_OR_RETURN(const std::string config_text, directory.Read("config.json", kJsonBytesMax));
  ASSIGN_OR_RETURN(HfConfig config, ParseHfConfig(config_text, directory.Path("config.json")));
  ASSIGN_OR_RETURN(const Safetensors safetensors, Safetensors::OpenDirectory(path));
  directory.AddPaths(safetensors.FilePaths());
  Checkpoint checkpoint;
  checkpoint.source_format = "safetensors";
  checkpoint.source_types = DescribeTypes(safetensors);
  std::optional<CompressedTensorsSource> int8;
  if (config.compressed_tensors) {
    ASSIGN_OR_RETURN(int8, CompressedTensorsSource::Create(safetensors));
    checkpoint.input_scales = int8->input_scales();
    checkpoint.source_types = DescribeTypes(*int8);
  }
  const TensorSource& weights = int8 ? static_cast<const TensorSource&>(*int8) : safetensors;
  ASSIGN_OR_RETURN(TokenizerAndTemplate tokenizer,
                   ReadHfTokenizer(directory, "tokenizer.json", std::move(config.eos_ids)));
  checkpoint.tokenizer = std::move(tokenizer.tokenizer);
  checkpoint.chat_template = std::move(tokenizer.chat_template);
  checkpoint.model.config = config.config;
  RETURN_IF_ERROR(CheckVocabulary(checkpoint, path, progress));
  ASSIGN_OR_RETURN(checkpoint.source_sha256, directory.Sha256(progress));
  ASSIGN_OR_RETURN(checkpoint.model, ReadLlamaWeights(config.config, weights,
                                                      CheckpointFormat::kHuggingFace, progress));
  checkpoint.model.rope_inverse_frequency = InverseFrequencies(config.rope, config.config.head_dim);
  return checkpoint;
}

// What the first bytes of a file say it is.
enum class FileKind { kGguf, kJson, kOther };

absl::StatusOr<FileKind> KindOf(const std::string& path) {
  ASSIGN_OR_RETURN(const RandomAccessFile file, RandomAccessFile::Open(path));
  std::string start(std::min<uint64_t>(file.size(), 64), '\0');
  RETURN_IF_ERROR(file.ReadAt(0, start.size(), start.data()));
  if (absl::StartsWith(start, "GGUF")) return FileKind::kGguf;
  const size_t first = start.find_first_not_of(" \t\r\n");
  return first != std::string::npos && start[first] == '{' ? FileKind::kJson : FileKind::kOther;
}

// config.json counts for its eos_token_id only; the tokenizer of any architecture can be read.
absl::StatusOr<TokenizerAndTemplate> ImportHfTokenizer(const std::string& path,
                                                       const std::string& tokenizer_name) {
  Directory directory(path);
  std::vector<int32_t> eos_ids;
  ASSIGN_OR_RETURN(const std::optional<std::string> config,
                   directory.ReadOptional("config.json", kJsonBytesMax));
  if (config.has_value()) {
    ASSIGN_OR_RETURN(eos_ids, ParseHfEosIds(*config, directory.Path("config.json")));
  }
  return ReadHfTokenizer(directory, tokenizer_name, std::move(eos_ids));
}

}  // namespace

absl::StatusOr<Checkpoint> ImportCheckpoint(const std::string& path,
                                            const ImportProgress& progress) {
  if (IsDirectory(path)) return ImportDirectory(path, progress);
  ASSIGN_OR_RETURN(const FileKind kind, KindOf(path));
  if (kind != FileKind::kGguf && absl::EndsWith(path, ".safetensors")) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": give the directory that holds it, with config.json and tokenizer.json"));
  }
  return ImportGguf(path, progress);
}

absl::StatusOr<TokenizerAndTemplate> ImportTokenizer(const std::string& path) {
  if (IsDirectory(path)) return ImportHfTokenizer(path, "tokenizer.json");
  ASSIGN_OR_RETURN(const FileKind kind, KindOf(path));
  if (kind == FileKind::kJson) {
    const std::filesystem::path full(path);
    const std::string parent = full.has_parent_path() ? full.parent_path().string() : ".";
    return ImportHfTokenizer(parent, full.filename().string());
  }
  if (kind != FileKind::kGguf) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": is neither a GGUF file, a tokenizer.json nor a Hugging Face directory"));
  }
  ASSIGN_OR_RETURN(const GgufFile gguf, GgufFile::Open(path, GgufFile::Contents::kMetadataOnly));
  TokenizerAndTemplate result;
  ASSIGN_OR_RETURN(result.tokenizer, ParseGgufTokenizer(gguf));
  ASSIGN_OR_RETURN(result.chat_template, ParseGgufChatTemplate(gguf));
  return result;
}

}  // namespace fixpoint
