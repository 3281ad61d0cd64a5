// Exact int8 products with vpmaddwd: weights are sign-extended to 16 bits as they are loaded,
// activations beforehand, and each multiply-add sums a pair of inputs into 32 bits. (vpmaddubsw
// would saturate its 16-bit sums.)
#include <immintrin.h>

#include "kernels/cpu/isa_arithmetic.h"
#include "kernels/cpu/portable.h"

namespace fixpoint::avx2 {
namespace {

#define FIXPOINT_INLINE inline __attribute__((always_inline))

constexpr int32_t kPanel = 16;    // outputs in a panel: two vectors of int32
constexpr int32_t kRowBlock = 4;  // 4 rows x 2 vectors of sums; a row is one plane of one token
constexpr int32_t kDepth = 512;   // inputs widened at a time; even

struct Work {
  const LinearArgs* args;
  int32_t planes, pairs;
};

FIXPOINT_INLINE const int8_t* RowPointer(const Work& work, int32_t row) {
  const ActivationPlanes& x = work.args->x;
  return (row % work.planes == 0 ? x.hi : x.lo) + static_cast<size_t>(row / work.planes) * x.stride;
}

// Inputs [begin, begin + n) of a row as int16, padded with a zero to an even count. Bytes behind
// the row may be read.
FIXPOINT_INLINE void Widen(const int8_t* in, int32_t n, int16_t* out) {
  for (int32_t i = 0; i < n; i += 16) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i));
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + i), _mm256_cvtepi8_epi16(x));
  }
}

FIXPOINT_INLINE __m256i BroadcastPair(const int16_t* x) {
  int32_t pair;
  __builtin_memcpy(&pair, x, 4);
  return _mm256_set1_epi32(pair);
}

FIXPOINT_INLINE __m256i LoadWide(const int8_t* w) {
  return _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(w)));
}

// Adds `pairs` pairs of inputs of kRows rows (kDepth apart in x) to sums[row][16].
template <int kRows>
FIXPOINT_INLINE void AddBlock(const int16_t* x, const int8_t* w, int32_t pairs,
                              int32_t (*sums)[kPanel]) {
  __m256i acc[kRows][2];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    acc[r][0] = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums[r]));
    acc[r][1] = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums[r] + 8));
  }
  for (int32_t i = 0; i < pairs; ++i, w += 2 * kPanel) {
    const __m256i w0 = LoadWide(w), w1 = LoadWide(w + kPanel);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m256i pair = BroadcastPair(x + r * kDepth + 2 * i);
      acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(pair, w0));
      acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(pair, w1));
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(sums[r]), acc[r][0]);
    _mm256_store_si256(reinterpret_cast<__m256i*>(sums[r] + 8), acc[r][1]);
  }
}

void StoreToken(const Work& work, int32_t token, int32_t panel, const int32_t* high,
                const int32_t* low) {
  const LinearArgs& args = *work.args;
  const int32_t column = panel * kPanel;
  int32_t* acc =
      args.acc + static_cast<size_t>(token) * args.acc_stride + (column - args.output_begin);
  for (int32_t c = 0; c < kPanel && column + c < args.output_end; ++c) {
    const int32_t bias = args.bias == nullptr ? 0 : args.bias[column + c];
    acc[c] = bias + high[c] + (low == nullptr ? 0 : RoundShift(low[c], 8));
  }
}

// kRows rows from `row` against all panels. Short of memory for a whole row, the depth goes in
// pieces inside a panel; the pieces are widened again for the next panel only if there are several.
template <int kRows>
void RowBlock(const Work& work, int32_t row, int32_t begin, int32_t end) {
  const LinearArgs& args = *work.args;
  const auto* weights = static_cast<const int8_t*>(args.packed);
  const size_t panel_bytes = static_cast<size_t>(work.pairs) * 2 * kPanel;
  alignas(32) int16_t x[kRows * kDepth];
  alignas(32) int32_t sums[kRows][kPanel];
  const int32_t inputs = work.pairs * 2;
  for (int32_t panel = begin; panel < end; ++panel) {
    __builtin_memset(sums, 0, sizeof(sums));
    for (int32_t k = 0; k < inputs; k += kDepth) {
      const int32_t n = inputs - k < kDepth ? inputs - k : kDepth;
      if (panel == begin || inputs > kDepth) {
        for (int r = 0; r < kRows; ++r) Widen(RowPointer(work, row + r) + k, n, x + r * kDepth);
      }
      AddBlock<kRows>(x, weights + panel * panel_bytes + static_cast<size_t>(k) * kPanel, n / 2,
                      sums);
    }
    for (int r = 0; r < kRows; r += work.planes) {
      StoreToken(work, (row + r) / work.planes, panel, sums[r],
                 work.planes == 1 ? nullptr : sums[r + 1]);
    }
  }
}

}  // namespace

size_t PackedWeightBytes(int32_t outputs, int32_t depth) {
  return (static_cast<size_t>(outputs) + kPanel - 1) / kPanel * kPanel *
         ((static_cast<size_t>(depth) + 1) / 2 * 2);
}

void PackWeights(const int8_t* weights, int32_t outputs, int32_t depth, int32_t output_begin,
                 int32_t output_end, void* packed) {
  const size_t padded = (static_cast<size_t>(depth) + 1) / 2 * 2;
  // The panel that holds the last output is filled to its end.
  const int32_t end = (output_end + kPanel - 1) / kPanel * kPanel;
  for (int32_t c = output_begin; c < end; ++c) {
    int8_t* out = static_cast<int8_t*>(packed) + static_cast<size_t>(c / kPanel) * kPanel * padded +
                  static_cast<size_t>(c % kPanel) * 2;
    const int8_t* w = weights + static_cast<size_t>(c) * depth;
    for (size_t k = 0; k < padded; ++k) {
      const bool inside = c < outputs && k < static_cast<size_t>(depth);
      out[k / 2 * 2 * kPanel + k % 2] = inside ? w[k] : 0;
    }
  }
}

void Linear(const LinearArgs& args) {
  const Work work{&args, args.x.lo == nullptr ? 1 : 2, (args.depth + 1) / 2};
  const int32_t begin = args.output_begin / kPanel;
  const int32_t end = (args.output_end + kPanel - 1) / kPanel;
  const int32_t rows = args.tokens * work.planes;
  int32_t row = 0;
  for (; row + kRowBlock <= rows; row += kRowBlock) RowBlock<kRowBlock>(work, row, begin, end);
  switch (rows - row) {
    case 1:
      return RowBlock<1>(work, row, begin, end);
    case 2:
      return RowBlock<2>(work, row, begin, end);
    case 3:
      return RowBlock<3>(work, row, begin, end);
    default:
      return;
  }
}

}  // namespace fixpoint::avx2
