#include "calibrator/import/dequantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace fixpoint {
namespace {

using ::testing::HasSubstr;

constexpr uint8_t kOneLow = 0x00, kOneHigh = 0x3c;    // 1.0 as binary16, low byte first
constexpr uint8_t kHalfHigh = 0x38, kTwoHigh = 0x40;  // 0.5 and 2.0 (low byte 0)

std::vector<float> Decode(WeightType type, const std::vector<uint8_t>& bytes) {
  const BlockSize block = BlockSizeOf(type);
  std::vector<float> out(bytes.size() / static_cast<size_t>(block.bytes) *
                         static_cast<size_t>(block.elements));
  Dequantize(type, bytes, absl::MakeSpan(out));
  return out;
}

TEST(DequantizeTest, F16CoversNormalSubnormalZeroAndSign) {
  EXPECT_EQ(Decode(WeightType::kF16, {0x00, 0x3c, 0x00, 0xc0, 0x01, 0x00, 0xff, 0x03, 0xff, 0x7b}),
            (std::vector<float>{1.0f, -2.0f, 0x1p-24f, 1023 * 0x1p-24f, 65504.0f}));
  EXPECT_TRUE(std::signbit(Decode(WeightType::kF16, {0x00, 0x80})[0]));
}

TEST(DequantizeTest, F16KeepsInfinityAndNan) {
  const std::vector<float> values = Decode(WeightType::kF16, {0x00, 0x7c, 0x01, 0x7c});
  EXPECT_EQ(values[0], std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(values[1]));
}

TEST(DequantizeTest, Bf16IsTheUpperHalfOfFloat) {
  EXPECT_EQ(Decode(WeightType::kBF16, {0x80, 0x3f, 0x49, 0xc0}),
            (std::vector<float>{1.0f, -3.140625f}));
}

TEST(DequantizeTest, Q4_0PutsLowNibblesFirstAndSubtractsEight) {
  std::vector<uint8_t> block(18, 0x88);  // every code 8: zero
  block[0] = kOneLow;
  block[1] = kTwoHigh;
  block[2] = 0xf0;   // element 0: code 0, element 16: code 15
  block[17] = 0x19;  // element 15: code 9, element 31: code 1
  std::vector<float> expected(32, 0.0f);
  expected[0] = -16.0f;
  expected[16] = 14.0f;
  expected[15] = 2.0f;
  expected[31] = -14.0f;
  EXPECT_EQ(Decode(WeightType::kQ4_0, block), expected);
}

TEST(DequantizeTest, Q4_1AddsTheMinimum) {
  std::vector<uint8_t> block(20, 0x00);
  block[1] = kHalfHigh;  // d = 0.5
  block[3] = 0xc0;       // m = -2
  block[4] = 0xf3;       // element 0: 3, element 16: 15
  std::vector<float> expected(32, -2.0f);
  expected[0] = -0.5f;
  expected[16] = 5.5f;
  EXPECT_EQ(Decode(WeightType::kQ4_1, block), expected);
}

TEST(DequantizeTest, Q5_0TakesTheFifthBitAndSubtractsSixteen) {
  std::vector<uint8_t> block(22, 0x00);
  block[1] = kOneHigh;
  block[2] = 0x01;  // fifth bit of element 0
  block[4] = 0x02;  // of element 17
  block[6] = 0x5f;  // element 0: 15 + 16, element 16: 5
  block[7] = 0x70;  // element 1: 0, element 17: 7 + 16
  std::vector<float> expected(32, -16.0f);
  expected[0] = 15.0f;
  expected[16] = -11.0f;
  expected[17] = 7.0f;
  EXPECT_EQ(Decode(WeightType::kQ5_0, block), expected);
}

TEST(DequantizeTest, Q5_1AddsTheMinimum) {
  std::vector<uint8_t> block(24, 0x00);
  block[1] = kTwoHigh;
  block[3] = kOneHigh;
  block[7] = 0x80;   // fifth bit of element 31
  block[23] = 0x41;  // element 15: 1, element 31: 4 + 16
  std::vector<float> expected(32, 1.0f);
  expected[15] = 3.0f;
  expected[31] = 41.0f;
  EXPECT_EQ(Decode(WeightType::kQ5_1, block), expected);
}

TEST(DequantizeTest, Q8_0CodesAreSigned) {
  std::vector<uint8_t> block(34, 0x00);
  block[1] = kHalfHigh;
  block[2] = 0x80;
  block[33] = 0x7f;
  std::vector<float> expected(32, 0.0f);
  expected[0] = -64.0f;
  expected[31] = 63.5f;
  EXPECT_EQ(Decode(WeightType::kQ8_0, block), expected);
}

// Scales of sub-blocks 0 and 5 and mins of 1 and 6, spread over the 12 packed bytes: sub-blocks
// below 4 have theirs in the low 6 bits, the others in a nibble of the last four bytes with two
// bits on top of the first eight.
std::vector<uint8_t> SuperBlock(size_t num_bytes) {
  std::vector<uint8_t> block(num_bytes, 0x00);
  block[1] = kOneHigh;   // d = 1
  block[3] = kHalfHigh;  // d_min = 0.5
  uint8_t* scales = block.data() + 4;
  scales[0] = 3;         // scale 0 = 3
  scales[4 + 1] = 8;     // min 1 = 8
  scales[8 + 1] = 0x02;  // scale 5 = 2 + 16 * 2 = 34: nibble here, two bits on top of byte 1
  scales[1] = 2 << 6;
  scales[8 + 2] = 0x10;  // min 6 = 1 + 16 * 3 = 49: nibble here, two bits on top of byte 6
  scales[4 + 2] = 3 << 6;
  return block;
}

TEST(DequantizeTest, Q4_KUnpacksSixBitScalesAndMins) {
  std::vector<uint8_t> block = SuperBlock(144);
  block[16] = 0x75;               // sub-block 0 element 0: 5, sub-block 1 element 0: 7
  block[16 + 2 * 32 + 3] = 0x40;  // sub-block 5 element 3: 4
  std::vector<float> expected(256, 0.0f);
  for (int i = 0; i < 32; ++i) expected[32 + i] = -4.0f;
  for (int i = 0; i < 32; ++i) expected[6 * 32 + i] = -24.5f;
  expected[0] = 15.0f;
  expected[5 * 32 + 3] = 136.0f;
  EXPECT_EQ(Decode(WeightType::kQ4_K, block), expected);
}

TEST(DequantizeTest, Q5_KTakesTheFifthBitOfItsSubBlock) {
  std::vector<uint8_t> block = SuperBlock(176);
  block[16] = 0x01;               // fifth bit of sub-block 0 element 0
  block[16 + 3] = 0x20;           // of sub-block 5 element 3
  block[48] = 0x05;               // sub-block 0 element 0: 5
  block[48 + 2 * 32 + 3] = 0x40;  // sub-block 5 element 3: 4
  std::vector<float> expected(256, 0.0f);
  for (int i = 0; i < 32; ++i) expected[32 + i] = -4.0f;
  for (int i = 0; i < 32; ++i) expected[6 * 32 + i] = -24.5f;
  expected[0] = 63.0f;            // 3 * (5 + 16)
  expected[5 * 32 + 3] = 680.0f;  // 34 * (4 + 16)
  EXPECT_EQ(Decode(WeightType::kQ5_K, block), expected);
}

TEST(DequantizeTest, Q6_KJoinsLowAndHighBits) {
  std::vector<uint8_t> block(210, 0x00);
  block[209] = kOneHigh;
  uint8_t* scales = block.data() + 192;
  scales[0] = 1;
  scales[7] = 0xfe;            // -2, elements 112..127
  scales[15] = 3;              // elements 240..255
  block[0] = 0x0f;             // element 0: low bits 15
  block[128] = 0x03;           // element 0: high bits 3 -> 63
  block[32 + 31] = 0xa0;       // element 127 (group 3: high nibble of bytes 32..63): low bits 10
  block[128 + 31] = 0x40;      // element 127: high bits 1 -> 26
  block[64 + 32 + 16] = 0x10;  // element 128 + 96 + 16 = 240: low bits 1
  std::vector<float> expected(256, 0.0f);
  for (int i = 0; i < 16; ++i) expected[i] = -32.0f;
  for (int i = 112; i < 128; ++i) expected[i] = 64.0f;
  for (int i = 240; i < 256; ++i) expected[i] = -96.0f;
  expected[0] = 31.0f;
  expected[127] = 12.0f;
  expected[240] = -93.0f;
  EXPECT_EQ(Decode(WeightType::kQ6_K, block), expected);
}

TEST(DequantizeTest, TypesThatCannotBeReadHaveNames) {
  EXPECT_FALSE(WeightTypeFromGgufId(10).has_value());
  EXPECT_EQ(GgufTypeName(10), "Q2_K");
  EXPECT_EQ(GgufTypeName(30), "BF16");
  EXPECT_EQ(GgufTypeName(39), "MXFP4");
  EXPECT_EQ(GgufTypeName(4), "type 4");
  EXPECT_EQ(GgufTypeName(4000000000), "type 4000000000");
}

TEST(CheckFiniteTest, NamesTheFirstBadElement) {
  const std::vector<float> good = {0.0f, -0.0f, std::numeric_limits<float>::max(),
                                   std::numeric_limits<float>::denorm_min()};
  EXPECT_TRUE(CheckFinite(good, "w").ok());
  const std::vector<float> bad = {1.0f, -std::numeric_limits<float>::infinity(), std::nanf("")};
  const absl::Status status = CheckFinite(bad, "tensor w");
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("tensor w: element 1 is -inf"));
}

}  // namespace
}  // namespace fixpoint
