// int8 matrix products on AMX tiles. A tile of weights (16 groups of 4 inputs x 16 outputs) is 1 KB
// of a panel as the vnni level packs it, so both levels read the same bytes; tdpbsud multiplies
// signed activations by the unsigned w + 128, and -128 * sum of the activations corrects that
// (vnni_linear.cc).
//
// A block is two tiles of activations by two panels. int8 sites: 16 + 16 tokens. int16 sites: hi
// and lo of 16 tokens.
#include "kernels/cpu/amx.h"
#include "kernels/cpu/vnni.h"
#include "kernels/cpu/vnni_common.h"

namespace fixpoint::amx {
namespace {

constexpr int32_t kPanel = 16;
constexpr int32_t kTileRows = 16;
constexpr int32_t kTokenChunk = 128;  // walked for one pair of panels: activations stay in L2
constexpr int32_t kMinTokens = 8;     // below, the vnni level is faster

struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

// Tiles 0..3: accumulators [activation tile * 2 + panel]; 4, 5: activations; 6, 7: weights.
FIXPOINT_INLINE void Configure(int32_t rows_first, int32_t rows_second) {
  TileConfig config;
  __builtin_memset(&config, 0, sizeof(config));
  config.palette = 1;
  const auto first = static_cast<uint8_t>(rows_first), second = static_cast<uint8_t>(rows_second);
  const uint8_t rows[8] = {first, first, second, second, first, second, 16, 16};
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = 64;
    config.rows[i] = rows[i];
  }
  // gcc 12 tells the optimiser of only the first 8 bytes that ldtilecfg reads.
  __asm__ volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}

struct Work {
  const LinearArgs* args;
  const uint8_t* panels;
  size_t panel_bytes;
  int32_t tiles;  // padded depth / 64
};

// -128 * sum of the row, modulo 2^32.
FIXPOINT_INLINE int32_t RowCorrection(const int8_t* x, int32_t tiles) {
  __m512i sum = _mm512_setzero_si512();
  for (int32_t i = 0; i < tiles; ++i) {
    sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1),
                              _mm512_loadu_si512(x + 64 * static_cast<size_t>(i)));
  }
  return static_cast<int32_t>(static_cast<uint32_t>(_mm512_reduce_add_epi32(sum)) * -128u);
}

// Products of two activation tiles with panels [panel, panel + 2), 1 if kPair is false, into
// out[tile * 2 + panel].
template <bool kSecond, bool kPair>
FIXPOINT_INLINE void Multiply(const Work& work, const int8_t* first, const int8_t* second,
                              int32_t panel, int32_t (*out)[kTileRows * kPanel]) {
  const size_t stride = work.args->x.stride;
  const uint8_t* w = work.panels + static_cast<size_t>(panel) * work.panel_bytes;
  _tile_zero(0);
  if constexpr (kPair) _tile_zero(1);
  if constexpr (kSecond) _tile_zero(2);
  if constexpr (kSecond && kPair) _tile_zero(3);
  for (int32_t i = 0; i < work.tiles; ++i) {
    const size_t k = static_cast<size_t>(i) * 64, at = static_cast<size_t>(i) * 1024;
    _tile_loadd(6, w + at, 64);
    _tile_stream_loadd(4, first + k, stride);
    _tile_dpbsud(0, 4, 6);
    if constexpr (kPair) {
      _tile_loadd(7, w + work.panel_bytes + at, 64);
      _tile_dpbsud(1, 4, 7);
    }
    if constexpr (kSecond) {
      _tile_stream_loadd(5, second + k, stride);
      _tile_dpbsud(2, 5, 6);
      if constexpr (kPair) _tile_dpbsud(3, 5, 7);
    }
  }
  _tile_stored(0, out[0], 64);
  if constexpr (kPair) _tile_stored(1, out[1], 64);
  if constexpr (kSecond) _tile_stored(2, out[2], 64);
  if constexpr (kSecond && kPair) _tile_stored(3, out[3], 64);
  // The intrinsics do not say that they write memory.
  __asm__ volatile("" ::: "memory");
}

FIXPOINT_INLINE __m512i LoadBias(const LinearArgs& args, int32_t column) {
  if (args.bias == nullptr) return _mm512_setzero_si512();
  return _mm512_maskz_loadu_epi32(TailMask16(args.outputs - column), args.bias + column);
}

FIXPOINT_INLINE void StoreRow(const LinearArgs& args, int32_t token, int32_t column,
                              __m512i value) {
  _mm512_storeu_si512(
      args.acc + static_cast<size_t>(token) * args.acc_stride + (column - args.output_begin),
      value);
}

// One tile of an int8 site: `rows` tokens from `token`.
FIXPOINT_INLINE void StoreTile(const LinearArgs& args, int32_t token, int32_t rows, int32_t column,
                               const int32_t* corrections, const int32_t* tile) {
  const __m512i bias = LoadBias(args, column);
  for (int32_t r = 0; r < rows; ++r) {
    const __m512i start = _mm512_add_epi32(bias, _mm512_set1_epi32(corrections[r]));
    StoreRow(args, token + r, column,
             _mm512_add_epi32(_mm512_load_si512(tile + r * kPanel), start));
  }
}

// The tiles of both planes of an int16 site. Corrections of the lo plane lie kTokenChunk behind
// those of the hi plane.
FIXPOINT_INLINE void StoreWideTile(const LinearArgs& args, int32_t token, int32_t rows,
                                   int32_t column, const int32_t* corrections, const int32_t* high,
                                   const int32_t* low) {
  const __m512i bias = LoadBias(args, column);
  const SafeRound round(8);
  for (int32_t r = 0; r < rows; ++r) {
    const __m512i start = _mm512_add_epi32(bias, _mm512_set1_epi32(corrections[r]));
    const __m512i l = _mm512_add_epi32(_mm512_load_si512(low + r * kPanel),
                                       _mm512_set1_epi32(corrections[kTokenChunk + r]));
    const __m512i h = _mm512_add_epi32(_mm512_load_si512(high + r * kPanel), start);
    StoreRow(args, token + r, column, _mm512_add_epi32(h, round(l)));
  }
}

// A block of up to 32 tokens (16 of an int16 site) against one or two panels.
template <bool kPair>
FIXPOINT_INLINE void Block(const Work& work, int32_t token, int32_t rows, int32_t panel,
                           const int32_t* corrections) {
  const LinearArgs& args = *work.args;
  const int32_t column = panel * kPanel;
  const size_t offset = static_cast<size_t>(token) * args.x.stride;
  const int8_t* x = args.x.hi + offset;
  alignas(64) int32_t out[4][kTileRows * kPanel];
  if (args.x.lo != nullptr) {
    Multiply<true, kPair>(work, x, args.x.lo + offset, panel, out);
    StoreWideTile(args, token, rows, column, corrections, out[0], out[2]);
    if (kPair) StoreWideTile(args, token, rows, column + kPanel, corrections, out[1], out[3]);
    return;
  }
  const int32_t second = rows - kTileRows;
  if (second <= 0) {
    Multiply<false, kPair>(work, x, x, panel, out);
  } else {
    Multiply<true, kPair>(work, x, x + kTileRows * args.x.stride, panel, out);
    StoreTile(args, token + kTileRows, second, column, corrections + kTileRows, out[2]);
    if (kPair) {
      StoreTile(args, token + kTileRows, second, column + kPanel, corrections + kTileRows, out[3]);
    }
  }
  const int32_t first = second > 0 ? kTileRows : rows;
  StoreTile(args, token, first, column, corrections, out[0]);
  if (kPair) StoreTile(args, token, first, column + kPanel, corrections, out[1]);
}

// Tokens [token, token + count) in blocks of `step`; the tiles are configured for that.
void Blocks(const Work& work, int32_t token, int32_t count, int32_t step, int32_t begin,
            int32_t end, const int32_t* corrections) {
  for (int32_t panel = begin; panel < end; panel += 2) {
    for (int32_t t = 0; t < count; t += step) {
      if (panel + 1 < end) {
        Block<true>(work, token + t, step, panel, corrections + t);
      } else {
        Block<false>(work, token + t, step, panel, corrections + t);
      }
    }
  }
}

void TokenRange(const Work& work, int32_t token, int32_t count, int32_t begin, int32_t end) {
  const LinearArgs& args = *work.args;
  const bool wide = args.x.lo != nullptr;
  int32_t corrections[2 * kTokenChunk];
  for (int32_t t = 0; t < count; ++t) {
    const size_t offset = static_cast<size_t>(token + t) * args.x.stride;
    corrections[t] = RowCorrection(args.x.hi + offset, work.tiles);
    if (wide) corrections[kTokenChunk + t] = RowCorrection(args.x.lo + offset, work.tiles);
  }
  const int32_t step = wide ? kTileRows : 2 * kTileRows;
  const int32_t whole = count / step * step, rest = count - whole;
  if (whole > 0) Blocks(work, token, whole, step, begin, end, corrections);
  if (rest == 0) return;
  if (wide) {
    Configure(rest, rest);
  } else if (rest > kTileRows) {
    Configure(kTileRows, rest - kTileRows);
  } else {
    Configure(rest, kTileRows);
  }
  Blocks(work, token + whole, rest, rest, begin, end, corrections + whole);
  Configure(kTileRows, kTileRows);
}

}  // namespace

void ThreadInit() { Configure(kTileRows, kTileRows); }

void Linear(const LinearArgs& args) {
  if (args.tokens < kMinTokens) return vnni::Linear(args);
  const int32_t tiles = (args.depth + 63) / 64;
  const Work work{&args, static_cast<const uint8_t*>(args.packed),
                  static_cast<size_t>(tiles) * 64 * kPanel, tiles};
  const int32_t begin = args.output_begin / kPanel;
  const int32_t end = (args.output_end + kPanel - 1) / kPanel;
  for (int32_t token = 0; token < args.tokens; token += kTokenChunk) {
    const int32_t left = args.tokens - token;
    TokenRange(work, token, left < kTokenChunk ? left : kTokenChunk, begin, end);
  }
}

}  // namespace fixpoint::amx
