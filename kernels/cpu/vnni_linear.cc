// int8 matrix products with vpdpbusd, which multiplies unsigned by signed bytes. The weights are
// the unsigned side: they are stored as w + 128, and sum x * (w + 128) - 128 * sum x is what we
// want. So activations are broadcast straight from memory as they are, and the correction is one
// number per row of activations, put into the accumulator beforehand. Partial sums may wrap; the
// result is exact because arithmetic modulo 2^32 is.
//
// A "row" below is one plane of one token: int8 sites have one a token, int16 sites two neighbours,
// hi then lo, so that both are multiplied with weights that are read once.
#include "kernels/cpu/vnni.h"
#include "kernels/cpu/vnni_common.h"

namespace fixpoint::vnni {
namespace {

constexpr int32_t kPanel = 16;  // outputs in a panel
// Rows walked for one group of panels, so that they stay in L2. A multiple of kRowBlock, and even.
constexpr int32_t kRowChunk = 192;
// 6 rows x 4 panels: 24 accumulators, 4 weights and 1 activation of 32 registers.
constexpr int32_t kRowBlock = 6;
constexpr int32_t kPanelBlock = 4;

size_t PaddedDepth(int32_t depth) { return (static_cast<size_t>(depth) + 63) / 64 * 64; }

struct Work {
  const LinearArgs* args;
  const uint8_t* panels;  // packed weights
  size_t panel_bytes;
  int32_t steps;   // padded depth / 4
  int32_t planes;  // rows a token
};

FIXPOINT_INLINE const int8_t* RowPointer(const Work& work, int32_t row) {
  const ActivationPlanes& x = work.args->x;
  if (work.planes == 1) return x.hi + static_cast<size_t>(row) * x.stride;
  return (row % 2 == 0 ? x.hi : x.lo) + static_cast<size_t>(row / 2) * x.stride;
}

// -128 * sum of the row, modulo 2^32.
FIXPOINT_INLINE int32_t RowCorrection(const int8_t* x, int32_t steps) {
  __m512i sum = _mm512_setzero_si512();
  const __m512i ones = _mm512_set1_epi8(1);
  for (int32_t s = 0; s < steps; s += 16) {
    sum = _mm512_dpbusd_epi32(sum, ones, _mm512_loadu_si512(x + 4 * static_cast<size_t>(s)));
  }
  return static_cast<int32_t>(static_cast<uint32_t>(_mm512_reduce_add_epi32(sum)) * -128u);
}

FIXPOINT_INLINE __m512i Broadcast4(const int8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  return _mm512_set1_epi32(four);
}

// The accumulators of rows [row, row + kRows) and panels [panel, panel + kPanels).
template <int kRows, int kPanels>
FIXPOINT_INLINE void Accumulate(const Work& work, int32_t row, int32_t panel,
                                const int32_t* corrections, __m512i (&acc)[kRows][kPanels]) {
  const uint8_t* w = work.panels + static_cast<size_t>(panel) * work.panel_bytes;
  const int8_t* x[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    x[r] = RowPointer(work, row + r);
    const __m512i start = _mm512_set1_epi32(corrections[r]);
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) acc[r][p] = start;
  }
  for (int32_t s = 0; s < work.steps; ++s) {
    const size_t at = static_cast<size_t>(s) * 64;
    if constexpr (kRows < kPanels) {
      __m512i activation[kRows];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) activation[r] = Broadcast4(x[r] + 4 * static_cast<size_t>(s));
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) {
        const __m512i weights = _mm512_load_si512(w + p * work.panel_bytes + at);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          acc[r][p] = _mm512_dpbusd_epi32(acc[r][p], weights, activation[r]);
        }
      }
    } else {
      __m512i weights[kPanels];
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) {
        weights[p] = _mm512_load_si512(w + p * work.panel_bytes + at);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m512i activation = Broadcast4(x[r] + 4 * static_cast<size_t>(s));
#pragma GCC unroll 8
        for (int p = 0; p < kPanels; ++p) {
          acc[r][p] = _mm512_dpbusd_epi32(acc[r][p], weights[p], activation);
        }
      }
    }
  }
}

FIXPOINT_INLINE __m512i LoadBias(const LinearArgs& args, int32_t column) {
  if (args.bias == nullptr) return _mm512_setzero_si512();
  return _mm512_maskz_loadu_epi32(TailMask16(args.outputs - column), args.bias + column);
}

template <int kRows, int kPanels>
FIXPOINT_INLINE void Block(const Work& work, int32_t row, int32_t panel,
                           const int32_t* corrections) {
  const LinearArgs& args = *work.args;
  __m512i acc[kRows][kPanels];
  Accumulate<kRows, kPanels>(work, row, panel, corrections, acc);
#pragma GCC unroll 8
  for (int p = 0; p < kPanels; ++p) {
    const int32_t column = (panel + p) * kPanel;
    const __m512i bias = LoadBias(args, column);
    if (work.planes == 1) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        _mm512_storeu_si512(args.acc + static_cast<size_t>(row + r) * args.acc_stride +
                                (column - args.output_begin),
                            _mm512_add_epi32(acc[r][p], bias));
      }
    } else if constexpr (kRows % 2 == 0) {
      const SafeRound round(8);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; r += 2) {
        const __m512i sum = _mm512_add_epi32(acc[r][p], round(acc[r + 1][p]));
        _mm512_storeu_si512(args.acc + static_cast<size_t>((row + r) / 2) * args.acc_stride +
                                (column - args.output_begin),
                            _mm512_add_epi32(sum, bias));
      }
    }
  }
}

// All panels of [begin, end) for kRows rows, kPanels at a time, then by halves.
template <int kRows, int kPanels>
void FewRows(const Work& work, int32_t rows_done, int32_t begin, int32_t end,
             const int32_t* corrections) {
  int32_t panel = begin;
  for (; panel + kPanels <= end; panel += kPanels) {
    Block<kRows, kPanels>(work, rows_done, panel, corrections);
  }
  if constexpr (kPanels > 1) {
    if (panel < end) FewRows<kRows, kPanels / 2>(work, rows_done, panel, end, corrections);
  }
}

// `rows` rows from `row` against kPanels panels; the last block takes what is left.
template <int kPanels>
void ManyRows(const Work& work, int32_t row, int32_t rows, int32_t panel,
              const int32_t* corrections) {
  for (; rows >= kRowBlock; rows -= kRowBlock, row += kRowBlock, corrections += kRowBlock) {
    Block<kRowBlock, kPanels>(work, row, panel, corrections);
  }
  switch (rows) {
    case 1:
      return Block<1, kPanels>(work, row, panel, corrections);
    case 2:
      return Block<2, kPanels>(work, row, panel, corrections);
    case 3:
      return Block<3, kPanels>(work, row, panel, corrections);
    case 4:
      return Block<4, kPanels>(work, row, panel, corrections);
    case 5:
      return Block<5, kPanels>(work, row, panel, corrections);
    default:
      return;
  }
}

void RowRange(const Work& work, int32_t row, int32_t rows, int32_t begin, int32_t end) {
  int32_t corrections[kRowChunk];
  for (int32_t r = 0; r < rows; ++r) {
    corrections[r] = RowCorrection(RowPointer(work, row + r), work.steps);
  }
  // Few rows wait for memory: 8 streams read at once get twice the bandwidth of one.
  switch (rows) {
    case 1:
      return FewRows<1, 8>(work, row, begin, end, corrections);
    case 2:
      return FewRows<2, 8>(work, row, begin, end, corrections);
    case 3:
      return FewRows<3, 8>(work, row, begin, end, corrections);
    case 4:
      return FewRows<4, 4>(work, row, begin, end, corrections);
    default:
      break;
  }
  int32_t panel = begin;
  for (; panel + kPanelBlock <= end; panel += kPanelBlock) {
    ManyRows<kPanelBlock>(work, row, rows, panel, corrections);
  }
  if (panel + 2 <= end) {
    ManyRows<2>(work, row, rows, panel, corrections);
    panel += 2;
  }
  if (panel < end) ManyRows<1>(work, row, rows, panel, corrections);
}

}  // namespace

size_t PackedWeightBytes(int32_t outputs, int32_t depth) {
  return (static_cast<size_t>(outputs) + kPanel - 1) / kPanel * kPanel * PaddedDepth(depth);
}

void PackWeights(const int8_t* weights, int32_t outputs, int32_t depth, int32_t output_begin,
                 int32_t output_end, void* packed) {
  const size_t padded = PaddedDepth(depth);
  // The panel that holds the last output is filled to its end.
  const int32_t end = (output_end + kPanel - 1) / kPanel * kPanel;
  for (int32_t c = output_begin; c < end; ++c) {
    uint8_t* out = static_cast<uint8_t*>(packed) +
                   static_cast<size_t>(c / kPanel) * kPanel * padded +
                   static_cast<size_t>(c % kPanel) * 4;
    const int8_t* w = weights + static_cast<size_t>(c) * depth;
    for (size_t k = 0; k < padded; ++k) {
      const bool inside = c < outputs && k < static_cast<size_t>(depth);
      out[k / 4 * 64 + k % 4] = static_cast<uint8_t>((inside ? w[k] : 0) + 128);
    }
  }
}

void Linear(const LinearArgs& args) {
  const size_t padded = PaddedDepth(args.depth);
  const Work work{&args, static_cast<const uint8_t*>(args.packed), padded * kPanel,
                  static_cast<int32_t>(padded / 4), args.x.lo == nullptr ? 1 : 2};
  const int32_t begin = args.output_begin / kPanel;
  const int32_t end = (args.output_end + kPanel - 1) / kPanel;
  const int32_t rows = args.tokens * work.planes;
  for (int32_t row = 0; row < rows; row += kRowChunk) {
    RowRange(work, row, rows - row < kRowChunk ? rows - row : kRowChunk, begin, end);
  }
}

}  // namespace fixpoint::vnni
