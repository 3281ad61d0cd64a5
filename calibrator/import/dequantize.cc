#include "calibrator/import/dequantize.h"

#include <array>
#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace fixpoint {
namespace {

static_assert(std::endian::native == std::endian::little, "both formats are little-endian");

using Half = uint16_t;  // IEEE binary16 as stored

struct BlockQ4_0 {
  Half d;
  uint8_t quants[16];
};
static_assert(sizeof(BlockQ4_0) == 18);

struct BlockQ4_1 {
  Half d;
  Half m;
  uint8_t quants[16];
};
static_assert(sizeof(BlockQ4_1) == 20);

struct BlockQ5_0 {
  Half d;
  uint8_t fifth_bits[4];
  uint8_t quants[16];
};
static_assert(sizeof(BlockQ5_0) == 22);

struct BlockQ5_1 {
  Half d;
  Half m;
  uint8_t fifth_bits[4];
  uint8_t quants[16];
};
static_assert(sizeof(BlockQ5_1) == 24);

struct BlockQ8_0 {
  Half d;
  int8_t quants[32];
};
static_assert(sizeof(BlockQ8_0) == 34);

struct BlockQ4_K {
  Half d;
  Half d_min;
  uint8_t scales[12];  // eight pairs (scale, min) of 6 bits
  uint8_t quants[128];
};
static_assert(sizeof(BlockQ4_K) == 144);

struct BlockQ5_K {
  Half d;
  Half d_min;
  uint8_t scales[12];
  uint8_t fifth_bits[32];  // bit s of byte i belongs to element 32 s + i
  uint8_t quants[128];
};
static_assert(sizeof(BlockQ5_K) == 176);

struct BlockQ6_K {
  uint8_t low_bits[128];
  uint8_t high_bits[64];
  int8_t scales[16];  // one for 16 elements
  Half d;
};
static_assert(sizeof(BlockQ6_K) == 210);

// Exact: every binary16 is a binary32. NaN stays NaN, so that the finite check sees it.
float FromHalf(Half half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 31u;
  const uint32_t mantissa = half & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // subnormal, or zero
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

float FromBfloat(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// Nibble j of the 16 bytes: low nibbles are elements 0..15, high ones 16..31.
void Decode(const BlockQ4_0& block, float* out) {
  const float d = FromHalf(block.d);
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>((block.quants[j] & 15) - 8);
    out[j + 16] = d * static_cast<float>((block.quants[j] >> 4) - 8);
  }
}

void Decode(const BlockQ4_1& block, float* out) {
  const float d = FromHalf(block.d);
  const float m = FromHalf(block.m);
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>(block.quants[j] & 15) + m;
    out[j + 16] = d * static_cast<float>(block.quants[j] >> 4) + m;
  }
}

// The 5-bit code of element j (low nibble) and of element j + 16 (high nibble).
struct FiveBitPair {
  int low;
  int high;
};
FiveBitPair FiveBits(const uint8_t* fifth_bits, const uint8_t* quants, int j) {
  uint32_t bits;
  std::memcpy(&bits, fifth_bits, sizeof(bits));
  return {static_cast<int>((quants[j] & 15u) | (((bits >> j) & 1u) << 4)),
          static_cast<int>((quants[j] >> 4) | (((bits >> (j + 16)) & 1u) << 4))};
}

void Decode(const BlockQ5_0& block, float* out) {
  const float d = FromHalf(block.d);
  for (int j = 0; j < 16; ++j) {
    const FiveBitPair q = FiveBits(block.fifth_bits, block.quants, j);
    out[j] = d * static_cast<float>(q.low - 16);
    out[j + 16] = d * static_cast<float>(q.high - 16);
  }
}

void Decode(const BlockQ5_1& block, float* out) {
  const float d = FromHalf(block.d);
  const float m = FromHalf(block.m);
  for (int j = 0; j < 16; ++j) {
    const FiveBitPair q = FiveBits(block.fifth_bits, block.quants, j);
    out[j] = d * static_cast<float>(q.low) + m;
    out[j + 16] = d * static_cast<float>(q.high) + m;
  }
}

void Decode(const BlockQ8_0& block, float* out) {
  const float d = FromHalf(block.d);
  for (int j = 0; j < 32; ++j) out[j] = d * static_cast<float>(block.quants[j]);
}

// Sub-block s of 8. The first four pairs sit in the low 6 bits of bytes s and s + 4; of the last
// four, the low 4 bits sit in byte s + 4 and the high 2 bits on top of the bytes of the first four.
struct ScaleAndMin {
  float scale;
  float min;
};
ScaleAndMin UnpackScale(const uint8_t* packed, int s) {
  if (s < 4) {
    return {static_cast<float>(packed[s] & 63), static_cast<float>(packed[s + 4] & 63)};
  }
  return {static_cast<float>((packed[s + 4] & 15) | ((packed[s - 4] >> 6) << 4)),
          static_cast<float>((packed[s + 4] >> 4) | ((packed[s] >> 6) << 4))};
}

// Sub-blocks 2 g and 2 g + 1 are the low and the high nibbles of the same 32 bytes.
void Decode(const BlockQ4_K& block, float* out) {
  const float d = FromHalf(block.d);
  const float d_min = FromHalf(block.d_min);
  for (int s = 0; s < 8; ++s) {
    const ScaleAndMin pair = UnpackScale(block.scales, s);
    const float scale = d * pair.scale;
    const float offset = d_min * pair.min;
    const uint8_t* quants = block.quants + 32 * (s / 2);
    const int shift = 4 * (s % 2);
    for (int i = 0; i < 32; ++i) {
      out[32 * s + i] = scale * static_cast<float>((quants[i] >> shift) & 15) - offset;
    }
  }
}

void Decode(const BlockQ5_K& block, float* out) {
  const float d = FromHalf(block.d);
  const float d_min = FromHalf(block.d_min);
  for (int s = 0; s < 8; ++s) {
    const ScaleAndMin pair = UnpackScale(block.scales, s);
    const float scale = d * pair.scale;
    const float offset = d_min * pair.min;
    const uint8_t* quants = block.quants + 32 * (s / 2);
    const int shift = 4 * (s % 2);
    for (int i = 0; i < 32; ++i) {
      const int fifth = (block.fifth_bits[i] >> s) & 1;
      const int code = ((quants[i] >> shift) & 15) | (fifth << 4);
      out[32 * s + i] = scale * static_cast<float>(code) - offset;
    }
  }
}

// Two halves of 128 elements; in each, group g of 32 takes nibble g / 2 of bytes 32 (g % 2) + i and
// bits 2 g of high_bits.
void Decode(const BlockQ6_K& block, float* out) {
  const float d = FromHalf(block.d);
  for (int half = 0; half < 2; ++half) {
    const uint8_t* low_bits = block.low_bits + 64 * half;
    const uint8_t* high_bits = block.high_bits + 32 * half;
    for (int g = 0; g < 4; ++g) {
      for (int i = 0; i < 32; ++i) {
        const int low = (low_bits[32 * (g % 2) + i] >> (4 * (g / 2))) & 15;
        const int high = (high_bits[i] >> (2 * g)) & 3;
        const int element = 128 * half + 32 * g + i;
        const float scale = d * static_cast<float>(block.scales[element / 16]);
        out[element] = scale * static_cast<float>((low | (high << 4)) - 32);
      }
    }
  }
}

template <typename Block>
void DecodeBlocks(const uint8_t* encoded, int64_t elements, absl::Span<float> out) {
  const int64_t num_blocks = static_cast<int64_t>(out.size()) / elements;
  for (int64_t b = 0; b < num_blocks; ++b) {
    Block block;  // a copy, because blocks of odd sizes are not aligned
    std::memcpy(&block, encoded + b * static_cast<int64_t>(sizeof(Block)), sizeof(Block));
    Decode(block, out.data() + b * elements);
  }
}

template <typename Convert>
void DecodeSixteenBit(const uint8_t* encoded, absl::Span<float> out, Convert convert) {
  for (size_t i = 0; i < out.size(); ++i) {
    uint16_t bits;
    std::memcpy(&bits, encoded + 2 * i, sizeof(bits));
    out[i] = convert(bits);
  }
}

}  // namespace

std::optional<WeightType> WeightTypeFromGgufId(uint32_t id) {
  switch (static_cast<WeightType>(id)) {
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kQ4_0:
    case WeightType::kQ4_1:
    case WeightType::kQ5_0:
    case WeightType::kQ5_1:
    case WeightType::kQ8_0:
    case WeightType::kQ4_K:
    case WeightType::kQ5_K:
    case WeightType::kQ6_K:
    case WeightType::kBF16:
      return static_cast<WeightType>(id);
  }
  return std::nullopt;
}

std::string GgufTypeName(uint32_t id) {
  // By id; empty where an id was withdrawn.
  static constexpr std::array<absl::string_view, 40> kNames = {
      "F32",     "F16",    "Q4_0",    "Q4_1",  "",       "",      "Q5_0",  "Q5_1",
      "Q8_0",    "Q8_1",   "Q2_K",    "Q3_K",  "Q4_K",   "Q5_K",  "Q6_K",  "Q8_K",
      "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS",
      "I8",      "I16",    "I32",     "I64",   "F64",    "IQ1_M", "BF16",  "",
      "",        "",       "TQ1_0",   "TQ2_0", "",       "",      "",      "MXFP4"};
  if (id < kNames.size() && !kNames[id].empty()) return std::string(kNames[id]);
  return absl::StrCat("type ", id);
}

BlockSize BlockSizeOf(WeightType type) {
  switch (type) {
    case WeightType::kF32:
      return {1, 4};
    case WeightType::kF16:
    case WeightType::kBF16:
      return {1, 2};
    case WeightType::kQ4_0:
      return {32, sizeof(BlockQ4_0)};
    case WeightType::kQ4_1:
      return {32, sizeof(BlockQ4_1)};
    case WeightType::kQ5_0:
      return {32, sizeof(BlockQ5_0)};
    case WeightType::kQ5_1:
      return {32, sizeof(BlockQ5_1)};
    case WeightType::kQ8_0:
      return {32, sizeof(BlockQ8_0)};
    case WeightType::kQ4_K:
      return {256, sizeof(BlockQ4_K)};
    case WeightType::kQ5_K:
      return {256, sizeof(BlockQ5_K)};
    case WeightType::kQ6_K:
      return {256, sizeof(BlockQ6_K)};
  }
  CHECK(false) << "weight type " << static_cast<uint32_t>(type);
  return {1, 1};
}

void Dequantize(WeightType type, absl::Span<const uint8_t> encoded, absl::Span<float> out) {
  const BlockSize block = BlockSizeOf(type);
  const int64_t num_elements = static_cast<int64_t>(out.size());
  CHECK_EQ(num_elements % block.elements, int64_t{0}) << WeightTypeName(type);
  CHECK_EQ(static_cast<int64_t>(encoded.size()), num_elements / block.elements * block.bytes);
  const uint8_t* bytes = encoded.data();
  switch (type) {
    case WeightType::kF32:
      if (!out.empty()) std::memcpy(out.data(), bytes, encoded.size());
      return;
    case WeightType::kF16:
      return DecodeSixteenBit(bytes, out, FromHalf);
    case WeightType::kBF16:
      return DecodeSixteenBit(bytes, out, FromBfloat);
    case WeightType::kQ4_0:
      return DecodeBlocks<BlockQ4_0>(bytes, block.elements, out);
    case WeightType::kQ4_1:
      return DecodeBlocks<BlockQ4_1>(bytes, block.elements, out);
    case WeightType::kQ5_0:
      return DecodeBlocks<BlockQ5_0>(bytes, block.elements, out);
    case WeightType::kQ5_1:
      return DecodeBlocks<BlockQ5_1>(bytes, block.elements, out);
    case WeightType::kQ8_0:
      return DecodeBlocks<BlockQ8_0>(bytes, block.elements, out);
    case WeightType::kQ4_K:
      return DecodeBlocks<BlockQ4_K>(bytes, block.elements, out);
    case WeightType::kQ5_K:
      return DecodeBlocks<BlockQ5_K>(bytes, block.elements, out);
    case WeightType::kQ6_K:
      return DecodeBlocks<BlockQ6_K>(bytes, block.elements, out);
  }
}

absl::Status CheckFinite(absl::Span<const float> values, absl::string_view what) {
  constexpr uint32_t kExponent = 0x7f800000u;
  bool finite = true;  // no branch inside, so that the compiler can vectorize the common case
  for (const float value : values) {
    finite &= (std::bit_cast<uint32_t>(value) & kExponent) != kExponent;
  }
  if (finite) return absl::OkStatus();
  size_t i = 0;
  while ((std::bit_cast<uint32_t>(values[i]) & kExponent) != kExponent) ++i;
  return absl::DataLossError(
      absl::StrCat(what, ": element ", i, " is ", values[i], ", weights must be finite"));
}

}  // namespace fixpoint
