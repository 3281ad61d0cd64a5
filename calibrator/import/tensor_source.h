// What a GGUF file and a set of safetensors files have in common: named tensors that decode to
// float32.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"

namespace fixpoint {

struct TensorInfo {
  std::string name;
  std::vector<int64_t> shape;  // Hugging Face order: [out_features, in_features], or [n]
  std::string type;            // "Q4_1", "BF16"; also of types that cannot be read
  int64_t num_elements = 0;    // product of the shape
};

inline std::string ShapeText(absl::Span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

class TensorSource {
 public:
  virtual ~TensorSource() = default;

  // Names are unique.
  virtual const std::vector<TensorInfo>& tensors() const = 0;

  // Where tensor `index` lies, for messages: a file path.
  virtual const std::string& PathOf(size_t index) const = 0;

  // Decodes tensor `index` into `out`, which holds exactly its elements (CHECKed). An unreadable
  // type is UNIMPLEMENTED, NaN and infinity are DATA_LOSS; messages name file and tensor.
  virtual absl::Status Read(size_t index, absl::Span<float> out) const = 0;
};

}  // namespace fixpoint
