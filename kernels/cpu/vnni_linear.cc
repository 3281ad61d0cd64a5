// int8 matrix products with vpdpbusd, which multiplies unsigned by signed bytes. The activations
// are made unsigned: sum (x + 128) * w - 128 * sum w is what we want, and the correction is one
// number per output, made when the weights are packed and put into the accumulator beforehand.
// Partial sums may wrap; the result is exact because arithmetic modulo 2^32 is.
//
// A "row" below is one plane of one token: int8 sites have one a token, int16 sites two neighbours,
// hi then lo, so that both are multiplied with weights that are read once.
#include "kernels/cpu/vnni.h"
#include "kernels/cpu/vnni_common.h"

namespace fixpoint::vnni {
namespace {

constexpr int32_t kPanel = 16;  // outputs in a panel
// Unsigned rows walked for one group of panels, in bytes: they stay in L2. Two rows of the largest
// depth fit.
constexpr size_t kRowChunkBytes = size_t{256} << 10;
static_assert(kRowChunkBytes >= 2 * size_t{kMaxDepth});
// 6 rows x 4 panels: 24 accumulators, 4 weights and 1 activation of 32 registers.
constexpr int32_t kRowBlock = 6;
constexpr int32_t kPanelBlock = 4;

size_t PaddedDepth(int32_t depth) { return (static_cast<size_t>(depth) + 63) / 64 * 64; }

size_t PanelOutputs(int32_t outputs) {
  return (static_cast<size_t>(outputs) + kPanel - 1) / kPanel * kPanel;
}

struct Work {
  const LinearArgs* args;
  const int8_t* panels;        // packed weights
  const int32_t* corrections;  // [panels][kPanel]
  size_t panel_bytes;
  int32_t steps;   // padded depth / 4
  int32_t planes;  // rows a token
  uint8_t* rows;   // [rows of the chunk][padded depth] x + 128
  int32_t* acc;    // of the chunk's first token
};

// The chunk's rows as unsigned bytes, [row, row + rows) of all.
void CopyRows(const Work& work, int32_t row, int32_t rows) {
  const ActivationPlanes& x = work.args->x;
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(128));
  uint8_t* out = work.rows;
  for (int32_t r = row; r < row + rows; ++r) {
    const int8_t* plane = work.planes == 1 || r % 2 == 0 ? x.hi : x.lo;
    const int8_t* in = plane + static_cast<size_t>(r / work.planes) * x.stride;
    for (int32_t s = 0; s < work.steps; s += 16, in += 64, out += 64) {
      _mm512_store_si512(out, _mm512_xor_si512(_mm512_loadu_si512(in), flip));
    }
  }
}

FIXPOINT_INLINE __m512i Broadcast4(const uint8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  return _mm512_set1_epi32(four);
}

// The accumulators of rows [row, row + kRows) and panels [panel, panel + kPanels).
template <int kRows, int kPanels>
FIXPOINT_INLINE void Accumulate(const Work& work, int32_t row, int32_t panel,
                                __m512i (&acc)[kRows][kPanels]) {
  const int8_t* w = work.panels + static_cast<size_t>(panel) * work.panel_bytes;
  const size_t row_bytes = 4 * static_cast<size_t>(work.steps);
  const uint8_t* x = work.rows + static_cast<size_t>(row) * row_bytes;
#pragma GCC unroll 8
  for (int p = 0; p < kPanels; ++p) {
    const __m512i start = _mm512_load_si512(work.corrections + (panel + p) * kPanel);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) acc[r][p] = start;
  }
  for (int32_t s = 0; s < work.steps; ++s) {
    const size_t at = static_cast<size_t>(s) * 64;
    if constexpr (kRows < kPanels) {
      __m512i activation[kRows];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r)
        activation[r] =
            Broadcast4(x + static_cast<size_t>(r) * row_bytes + 4 * static_cast<size_t>(s));
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) {
        const __m512i weights = _mm512_load_si512(w + p * work.panel_bytes + at);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          acc[r][p] = _mm512_dpbusd_epi32(acc[r][p], activation[r], weights);
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
        const __m512i activation =
            Broadcast4(x + static_cast<size_t>(r) * row_bytes + 4 * static_cast<size_t>(s));
#pragma GCC unroll 8
        for (int p = 0; p < kPanels; ++p) {
          acc[r][p] = _mm512_dpbusd_epi32(acc[r][p], activation, weights[p]);
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
FIXPOINT_INLINE void Block(const Work& work, int32_t row, int32_t panel) {
  const LinearArgs& args = *work.args;
  __m512i acc[kRows][kPanels];
  Accumulate<kRows, kPanels>(work, row, panel, acc);
#pragma GCC unroll 8
  for (int p = 0; p < kPanels; ++p) {
    const int32_t column = (panel + p) * kPanel;
    const __m512i bias = LoadBias(args, column);
    if (work.planes == 1) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        _mm512_storeu_si512(work.acc + static_cast<size_t>(row + r) * args.acc_stride +
                                (column - args.output_begin),
                            _mm512_add_epi32(acc[r][p], bias));
      }
    } else if constexpr (kRows % 2 == 0) {
      const SafeRound round(8);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; r += 2) {
        const __m512i sum = _mm512_add_epi32(acc[r][p], round(acc[r + 1][p]));
        _mm512_storeu_si512(work.acc + static_cast<size_t>((row + r) / 2) * args.acc_stride +
                                (column - args.output_begin),
                            _mm512_add_epi32(sum, bias));
      }
    }
  }
}

// All panels of [begin, end) for kRows rows, kPanels at a time, then by halves.
template <int kRows, int kPanels>
void FewRows(const Work& work, int32_t begin, int32_t end) {
  constexpr int32_t row = 0;
  int32_t panel = begin;
  for (; panel + kPanels <= end; panel += kPanels) {
    Block<kRows, kPanels>(work, row, panel);
  }
  if constexpr (kPanels > 1) {
    if (panel < end) FewRows<kRows, kPanels / 2>(work, panel, end);
  }
}

// `rows` rows from `row` against kPanels panels; the last block takes what is left.
template <int kPanels>
void ManyRows(const Work& work, int32_t rows, int32_t panel) {
  int32_t row = 0;
  for (; rows >= kRowBlock; rows -= kRowBlock, row += kRowBlock) {
    Block<kRowBlock, kPanels>(work, row, panel);
  }
  switch (rows) {
    case 1:
      return Block<1, kPanels>(work, row, panel);
    case 2:
      return Block<2, kPanels>(work, row, panel);
    case 3:
      return Block<3, kPanels>(work, row, panel);
    case 4:
      return Block<4, kPanels>(work, row, panel);
    case 5:
      return Block<5, kPanels>(work, row, panel);
    default:
      return;
  }
}

// The first `rows` rows of the chunk.
void RowRange(const Work& work, int32_t rows, int32_t begin, int32_t end) {
  // Few rows wait for memory: 8 streams read at once get twice the bandwidth of one.
  switch (rows) {
    case 1:
      return FewRows<1, 8>(work, begin, end);
    case 2:
      return FewRows<2, 8>(work, begin, end);
    case 3:
      return FewRows<3, 8>(work, begin, end);
    case 4:
      return FewRows<4, 4>(work, begin, end);
    default:
      break;
  }
  int32_t panel = begin;
  for (; panel + kPanelBlock <= end; panel += kPanelBlock) {
    ManyRows<kPanelBlock>(work, rows, panel);
  }
  if (panel + 2 <= end) {
    ManyRows<2>(work, rows, panel);
    panel += 2;
  }
  if (panel < end) ManyRows<1>(work, rows, panel);
}

}  // namespace

size_t PackedWeightBytes(int32_t outputs, int32_t depth) {
  return PanelOutputs(outputs) * (PaddedDepth(depth) + sizeof(int32_t));
}

void PackWeights(const int8_t* weights, int32_t outputs, int32_t depth, int32_t output_begin,
                 int32_t output_end, void* packed) {
  const size_t padded = PaddedDepth(depth);
  auto* corrections =
      reinterpret_cast<int32_t*>(static_cast<int8_t*>(packed) + PanelOutputs(outputs) * padded);
  // The panel that holds the last output is filled to its end.
  const int32_t end = (output_end + kPanel - 1) / kPanel * kPanel;
  for (int32_t c = output_begin; c < end; ++c) {
    int8_t* out = static_cast<int8_t*>(packed) + static_cast<size_t>(c / kPanel) * kPanel * padded +
                  static_cast<size_t>(c % kPanel) * 4;
    const int8_t* w = weights + static_cast<size_t>(c) * depth;
    int32_t sum = 0;
    for (size_t k = 0; k < padded; ++k) {
      const bool inside = c < outputs && k < static_cast<size_t>(depth);
      const int8_t value = inside ? w[k] : int8_t{0};
      out[k / 4 * 64 + k % 4] = value;
      sum += value;
    }
    corrections[c] = -128 * sum;
  }
}

void Linear(const LinearArgs& args) {
  alignas(64) uint8_t chunk[kRowChunkBytes];
  const size_t padded = PaddedDepth(args.depth);
  const auto* panels = static_cast<const int8_t*>(args.packed);
  const auto* corrections =
      reinterpret_cast<const int32_t*>(panels + PanelOutputs(args.outputs) * padded);
  const int32_t planes = args.x.lo == nullptr ? 1 : 2;
  Work work{&args,  panels, corrections, padded * kPanel, static_cast<int32_t>(padded / 4),
            planes, chunk,  args.acc};
  const int32_t begin = args.output_begin / kPanel;
  const int32_t end = (args.output_end + kPanel - 1) / kPanel;
  const int32_t rows = args.tokens * planes;
  const auto fit = static_cast<int32_t>(kRowChunkBytes / padded);
  const int32_t step = fit >= 2 * kRowBlock ? fit / (2 * kRowBlock) * (2 * kRowBlock) : fit / 2 * 2;
  for (int32_t row = 0; row < rows; row += step) {
    const int32_t count = rows - row < step ? rows - row : step;
    CopyRows(work, row, count);
    work.acc = args.acc + static_cast<size_t>(row / planes) * args.acc_stride;
    RowRange(work, count, begin, end);
  }
}

}  // namespace fixpoint::vnni
