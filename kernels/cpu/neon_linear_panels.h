// Linear layers over panels of 16 outputs (neon.h), for DotSums and MatrixSums (neon_products.h).
// Everything here has internal linkage (isa_arithmetic.h).
//
// A "row" is one plane of one token: int8 sites have one a token, int16 sites two neighbours, hi
// then lo, so that both are multiplied with weights that are read once.
#pragma once

#include "kernels/cpu/neon_products.h"

namespace fixpoint {
namespace {

constexpr int32_t kRowBlock = 6;  // 24 of 32 registers are sums
// Rows walked for one panel after the other, in bytes: they stay in L2.
constexpr size_t kRowChunkBytes = size_t{256} << 10;

size_t PaddedDepth(int32_t depth) {
  return (static_cast<size_t>(depth) + kChunk - 1) / kChunk * kChunk;
}

size_t PanelWeightBytes(int32_t outputs, int32_t depth) {
  return (static_cast<size_t>(outputs) + kPanel - 1) / kPanel * kPanel * PaddedDepth(depth);
}

// Panels with `inputs` neighbouring inputs of an output.
void PackPanels(const int8_t* weights, int32_t outputs, int32_t depth, int32_t output_begin,
                int32_t output_end, size_t inputs, int8_t* packed) {
  const size_t padded = PaddedDepth(depth);
  // The panel that holds the last output is filled to its end.
  const int32_t end = (output_end + kPanel - 1) / kPanel * kPanel;
  for (int32_t c = output_begin; c < end; ++c) {
    int8_t* out = packed + static_cast<size_t>(c / kPanel) * kPanel * padded +
                  static_cast<size_t>(c % kPanel) * inputs;
    const int8_t* w = weights + static_cast<size_t>(c) * depth;
    for (size_t k = 0; k < padded; ++k) {
      const bool inside = c < outputs && k < static_cast<size_t>(depth);
      out[k / inputs * inputs * kPanel + k % inputs] = inside ? w[k] : int8_t{0};
    }
  }
}

struct Work {
  const LinearArgs* args;
  size_t panel_bytes;
  int32_t chunks;  // padded depth / kChunk
  int32_t planes;  // rows a token
};

FIXPOINT_INLINE const int8_t* RowPointer(const Work& work, int32_t row) {
  const ActivationPlanes& x = work.args->x;
  // Dividing by `planes`, a variable, for each row of a block would show.
  if (work.planes == 1) return x.hi + static_cast<size_t>(row) * x.stride;
  return (row % 2 == 0 ? x.hi : x.lo) + static_cast<size_t>(row / 2) * x.stride;
}

struct Bias {
  FIXPOINT_INLINE Bias(const LinearArgs& args, int32_t column) {
    int32_t values[kPanel] = {};
    if (args.bias != nullptr) {
      const int32_t left = args.outputs - column;
      const int32_t n = left < kPanel ? left : kPanel;
      for (int32_t i = 0; i < n; ++i) values[i] = args.bias[column + i];
    }
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) groups[g] = vld1q_s32(values + 4 * g);
  }
  int32x4_t groups[4];
};

template <template <int> class Sums, int kRows>
FIXPOINT_INLINE void StoreSums(const Work& work, const Sums<kRows>& sums, int32_t row,
                               int32_t panel) {
  const LinearArgs& args = *work.args;
  const int32_t column = panel * kPanel;
  const Bias bias(args, column);
  const auto out = [&](int32_t token) __attribute__((always_inline)) {
    return args.acc + static_cast<size_t>(token) * args.acc_stride + (column - args.output_begin);
  };
  if (work.planes == 1) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) {
        vst1q_s32(out(row + r) + 4 * g, vaddq_s32(sums.Sums(r, g), bias.groups[g]));
      }
    }
  } else if constexpr (kRows % 2 == 0) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r += 2) {
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) {
        const int32x4_t low = vrshrq_n_s32(sums.Sums(r + 1, g), 8);
        const int32x4_t sum = vaddq_s32(vaddq_s32(sums.Sums(r, g), low), bias.groups[g]);
        vst1q_s32(out((row + r) / 2) + 4 * g, sum);
      }
    }
  }
}

template <template <int> class Sums, int kRows, int kPanels>
FIXPOINT_INLINE void Block(const Work& work, int32_t row, int32_t panel) {
  const int8_t* w =
      static_cast<const int8_t*>(work.args->packed) + static_cast<size_t>(panel) * work.panel_bytes;
  const int8_t* x[kRows];
  for (int r = 0; r < kRows; ++r) x[r] = RowPointer(work, row + r);
  Sums<kRows> sums[kPanels];
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) sums[p].Clear();
  for (int32_t chunk = 0; chunk < work.chunks; ++chunk, w += kChunkBytes) {
    int8x16_t inputs[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) inputs[r] = vld1q_s8(x[r] + kChunk * chunk);
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) sums[p].AddPanel(inputs, w + p * work.panel_bytes);
  }
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) StoreSums<Sums, kRows>(work, sums[p], row, panel + p);
}

// Few rows wait for memory, and several streams of weights are read faster than one: as many panels
// at once as registers allow.
template <template <int> class Sums, int kRows>
void FewRows(const Work& work, int32_t row, int32_t begin, int32_t end) {
  constexpr int kPanels = 24 / Sums<kRows>::kRegisters;
  int32_t panel = begin;
  for (; panel + kPanels <= end; panel += kPanels) Block<Sums, kRows, kPanels>(work, row, panel);
  for (; panel < end; ++panel) Block<Sums, kRows, 1>(work, row, panel);
}

// `rows` rows from `row` against one panel; the last block takes what is left.
template <template <int> class Sums>
void ManyRows(const Work& work, int32_t row, int32_t rows, int32_t panel) {
  for (; rows >= kRowBlock; rows -= kRowBlock, row += kRowBlock) {
    Block<Sums, kRowBlock, 1>(work, row, panel);
  }
  switch (rows) {
    case 1:
      return Block<Sums, 1, 1>(work, row, panel);
    case 2:
      return Block<Sums, 2, 1>(work, row, panel);
    case 3:
      return Block<Sums, 3, 1>(work, row, panel);
    case 4:
      return Block<Sums, 4, 1>(work, row, panel);
    case 5:
      return Block<Sums, 5, 1>(work, row, panel);
    default:
      return;
  }
}

template <template <int> class Sums>
void LinearPanels(const LinearArgs& args) {
  const size_t padded = PaddedDepth(args.depth);
  const Work work{&args, padded * kPanel, static_cast<int32_t>(padded / kChunk),
                  args.x.lo == nullptr ? 1 : 2};
  const int32_t begin = args.output_begin / kPanel;
  const int32_t end = (args.output_end + kPanel - 1) / kPanel;
  const int32_t rows = args.tokens * work.planes;
  switch (rows) {
    case 1:
      return FewRows<Sums, 1>(work, 0, begin, end);
    case 2:
      return FewRows<Sums, 2>(work, 0, begin, end);
    case 3:
      return FewRows<Sums, 3>(work, 0, begin, end);
    default:
      break;
  }
  const auto blocks = static_cast<int32_t>(kRowChunkBytes / padded) / kRowBlock;
  const int32_t step = (blocks > 0 ? blocks : 1) * kRowBlock;
  for (int32_t row = 0; row < rows; row += step) {
    const int32_t count = rows - row < step ? rows - row : step;
    for (int32_t panel = begin; panel < end; ++panel) ManyRows<Sums>(work, row, count, panel);
  }
}

}  // namespace
}  // namespace fixpoint
