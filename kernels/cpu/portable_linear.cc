// Dot products of 16-bit values, which compilers turn into multiply-add of pairs. Weights are
// widened once for a block of tokens, activations once for a block of outputs.
#include <cstring>

#include "kernels/cpu/isa_arithmetic.h"
#include "kernels/cpu/portable.h"

namespace fixpoint::portable {
namespace {

constexpr int32_t kOutputs = 16;  // a block of outputs
constexpr int32_t kRows = 16;     // a block of rows; a row is one plane of one token
constexpr int32_t kDepth = 512;   // 16 x 512 widened weights take 16 KB

void Widen(const int8_t* __restrict in, int32_t n, int16_t* __restrict out) {
  for (int32_t i = 0; i < n; ++i) out[i] = in[i];
}

void AddFourDots(const int16_t* __restrict x, const int16_t* __restrict w, int32_t n,
                 int32_t* __restrict sums) {
  const int16_t *w1 = w + kDepth, *w2 = w + 2 * kDepth, *w3 = w + 3 * kDepth;
  int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
  for (int32_t i = 0; i < n; ++i) {
    s0 += x[i] * w[i];
    s1 += x[i] * w1[i];
    s2 += x[i] * w2[i];
    s3 += x[i] * w3[i];
  }
  sums[0] += s0;
  sums[1] += s1;
  sums[2] += s2;
  sums[3] += s3;
}

struct Block {
  const LinearArgs* args;
  int32_t first_token, tokens, planes;  // tokens * planes <= kRows
  int32_t column, columns;              // <= kOutputs
};

const int8_t* RowPointer(const Block& block, int32_t row) {
  const ActivationPlanes& x = block.args->x;
  const size_t token = static_cast<size_t>(block.first_token) + row / block.planes;
  return (row % block.planes == 0 ? x.hi : x.lo) + token * x.stride;
}

void SumBlock(const Block& block, int32_t (*sums)[kOutputs]) {
  const LinearArgs& args = *block.args;
  const auto* weights = static_cast<const int8_t*>(args.packed);
  int16_t w[kOutputs * kDepth], x[kDepth];
  // Outputs come in fours; the rest of a four sees the last weights again, its sums are not used.
  const int32_t padded = (block.columns + 3) / 4 * 4;
  for (int32_t k = 0; k < args.depth; k += kDepth) {
    const int32_t n = args.depth - k < kDepth ? args.depth - k : kDepth;
    for (int32_t c = 0; c < padded; ++c) {
      const int32_t column = block.column + (c < block.columns ? c : block.columns - 1);
      Widen(weights + static_cast<size_t>(column) * args.depth + k, n, w + c * kDepth);
    }
    for (int32_t row = 0; row < block.tokens * block.planes; ++row) {
      Widen(RowPointer(block, row) + k, n, x);
      for (int32_t c = 0; c < padded; c += 4) AddFourDots(x, w + c * kDepth, n, sums[row] + c);
    }
  }
}

void LinearBlock(const Block& block) {
  const LinearArgs& args = *block.args;
  int32_t sums[kRows][kOutputs];
  std::memset(sums, 0, sizeof(sums));
  SumBlock(block, sums);
  for (int32_t t = 0; t < block.tokens; ++t) {
    int32_t* acc = args.acc + static_cast<size_t>(block.first_token + t) * args.acc_stride +
                   (block.column - args.output_begin);
    const int32_t* high = sums[t * block.planes];
    for (int32_t c = 0; c < block.columns; ++c) {
      const int32_t bias = args.bias == nullptr ? 0 : args.bias[block.column + c];
      const int32_t low = block.planes == 1 ? 0 : RoundShift(sums[t * block.planes + 1][c], 8);
      acc[c] = bias + high[c] + low;
    }
  }
}

}  // namespace

size_t PackedWeightBytes(int32_t outputs, int32_t depth) {
  return static_cast<size_t>(outputs) * static_cast<size_t>(depth);
}

void PackWeights(const int8_t* weights, int32_t /*outputs*/, int32_t depth, int32_t output_begin,
                 int32_t output_end, void* packed) {
  const size_t begin = static_cast<size_t>(output_begin) * depth;
  const size_t end = static_cast<size_t>(output_end) * depth;
  std::memcpy(static_cast<int8_t*>(packed) + begin, weights + begin, end - begin);
}

void Linear(const LinearArgs& args) {
  const int32_t planes = args.x.lo == nullptr ? 1 : 2;
  const int32_t step = kRows / planes;
  for (int32_t column = args.output_begin; column < args.output_end; column += kOutputs) {
    const int32_t columns_left = args.output_end - column;
    for (int32_t token = 0; token < args.tokens; token += step) {
      const int32_t tokens_left = args.tokens - token;
      LinearBlock({&args, token, tokens_left < step ? tokens_left : step, planes, column,
                   columns_left < kOutputs ? columns_left : kOutputs});
    }
  }
}

}  // namespace fixpoint::portable
