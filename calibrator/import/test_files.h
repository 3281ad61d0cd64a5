// Small checkpoints written by tests: GGUF and safetensors byte for byte, and one tiny model in
// both formats.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "calibrator/float_model.h"

namespace fixpoint::testing {

// A new directory under the system's temporary one, removed with its contents at the end.
class TempDirectory {
 public:
  TempDirectory();
  ~TempDirectory();
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;

  const std::string& path() const { return path_; }
  // Writes a file and returns its path.
  std::string Write(absl::string_view name, absl::string_view bytes) const;

 private:
  std::string path_;
};

template <typename T>
std::string LittleEndian(T value) {
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

std::string FloatBytes(const std::vector<float>& values);

// Writes whatever it is told, valid or not.
class GgufBuilder {
 public:
  uint32_t version = 3;
  uint64_t alignment = 32;  // used for the padding; write general.alignment yourself

  // Replaces a key of the same name.
  void SetUint32(const std::string& key, uint32_t value);
  void SetFloat32(const std::string& key, float value);
  void SetBool(const std::string& key, bool value);
  void SetString(const std::string& key, absl::string_view value);
  void SetStrings(const std::string& key, const std::vector<std::string>& values);
  void SetInt32s(const std::string& key, const std::vector<int32_t>& values);
  void SetFloat32s(const std::string& key, const std::vector<float>& values);
  void SetRaw(const std::string& key, uint32_t type, std::string bytes);
  void Remove(const std::string& key);
  void AppendDuplicateKeys() { duplicate_keys_ = true; }  // writes the last key twice

  struct Tensor {
    std::string name;
    std::vector<uint64_t> dims;  // file order: contiguous axis first
    uint32_t type = 0;
    std::string data;
    int64_t offset_shift = 0;  // added to the right offset
  };
  std::vector<Tensor> tensors;
  void AddFloatTensor(const std::string& name, std::vector<int64_t> shape,
                      const std::vector<float>& values);
  Tensor* Find(const std::string& name);

  std::string Build();
  // Ends of all fields and sections of the last Build, in rising order.
  const std::vector<size_t>& borders() const { return borders_; }
  size_t header_bytes() const { return header_bytes_; }  // up to the first tensor's data

 private:
  struct Pair {
    std::string key;
    uint32_t type;
    std::string bytes;
  };
  std::vector<Pair> pairs_;
  bool duplicate_keys_ = false;
  std::vector<size_t> borders_;
  size_t header_bytes_ = 0;
};

// header with its length in front, then data.
std::string SafetensorsBytes(absl::string_view header, absl::string_view data);

struct NamedTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};
// All tensors as F32, in order.
std::string SafetensorsFile(const std::vector<NamedTensor>& tensors);

// 2 layers, hidden 8, 2 heads of 4 over 1 key-value head, inner 6, 8 tokens; every weight
// different.
FloatModel TinyModel(bool tied, bool biases);

std::vector<NamedTensor> HuggingFaceTensors(const FloatModel& model);
std::string HuggingFaceConfig(const FloatModel& model);  // config.json
std::string TinyTokenizerJson();                         // byte-level BPE, GPT-2 splitting

// The same model and tokenizer as a GGUF file, rows of q and k interleaved as converters do.
GgufBuilder TinyGguf(const FloatModel& model);
void SetTinyTokenizer(GgufBuilder* builder);

// config.json, tokenizer.json and model.safetensors.
void WriteHuggingFace(const TempDirectory& directory, const FloatModel& model);

}  // namespace fixpoint::testing
