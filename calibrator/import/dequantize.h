// The weight encodings of GGUF and safetensors, turned into float32.
//
// Each value is computed as float32(scale) * float32(code) (+ or - float32 offset), every operation
// rounded once to float32 and never fused, which is what PyPI's `gguf` computes: the results agree
// bit for bit.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace fixpoint {

// The values are the type ids of a GGUF tensor info.
enum class WeightType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
};

// The type of a GGUF id, nothing for one that we cannot read.
std::optional<WeightType> WeightTypeFromGgufId(uint32_t id);

// GGUF's name of a type id ("Q2_K" for 10), also of types that we cannot read; "type 99" where
// there is none.
std::string GgufTypeName(uint32_t id);

inline std::string WeightTypeName(WeightType type) {
  return GgufTypeName(static_cast<uint32_t>(type));
}

// A block holds `elements` consecutive values of a row in `bytes` bytes.
struct BlockSize {
  int64_t elements;
  int64_t bytes;
};
BlockSize BlockSizeOf(WeightType type);

// Decodes whole blocks. Requires (CHECKed): out.size() a multiple of the block's elements,
// encoded.size() the bytes of as many blocks. Thread-safe.
void Dequantize(WeightType type, absl::Span<const uint8_t> encoded, absl::Span<float> out);

// DATA_LOSS naming `what`, the index and the value of the first NaN or infinity among `values`.
absl::Status CheckFinite(absl::Span<const float> values, absl::string_view what);

}  // namespace fixpoint
