// int8 matrix products on AMX tiles. A tile of weights (16 groups of 4 inputs x 16 outputs) is 1 KB
// of a panel as the vnni level packs it, so both levels read the same bytes.
//
// A block is two tiles of activations by two panels. int8 sites: 16 + 16 tokens, whose results go
// straight to memory. int16 sites: hi and lo of 16 tokens.
#include "kernels/cpu/amx.h"
#include "kernels/cpu/amx_tiles.h"
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
  const int8_t* panels;
  size_t panel_bytes;
  int32_t tiles;  // padded depth / 64
};

FIXPOINT_INLINE void LoadBias(const LinearArgs& args, int32_t column, int32_t* bias) {
  _mm512_store_si512(
      bias, _mm512_maskz_loadu_epi32(TailMask16(args.outputs - column), args.bias + column));
}

// Where the result tiles go: [tile of activations][panel], rows `stride` elements apart.
struct Results {
  int32_t* tiles[2][2];
  size_t stride;
};

// Products of two activation tiles with panels [panel, panel + 2), 1 if kPair is false. Tiles 0 and
// 1 start from the biases, 2 and 3 too if kBiasSecond.
template <bool kSecond, bool kPair, bool kBiasSecond>
FIXPOINT_INLINE void Multiply(const Work& work, const int8_t* first, const int8_t* second,
                              int32_t panel, const Results& out) {
  const size_t stride = work.args->x.stride;
  const int8_t* w = work.panels + static_cast<size_t>(panel) * work.panel_bytes;
  if (work.args->bias == nullptr) {
    _tile_zero(0);
    if constexpr (kPair) _tile_zero(1);
    if constexpr (kSecond) _tile_zero(2);
    if constexpr (kSecond && kPair) _tile_zero(3);
  } else {
    alignas(64) int32_t bias[2][kPanel];
    LoadBias(*work.args, panel * kPanel, bias[0]);
    if constexpr (kPair) LoadBias(*work.args, (panel + 1) * kPanel, bias[1]);
    MemoryBarrier();
    _tile_loadd(0, bias[0], 0);  // every row the same
    if constexpr (kPair) _tile_loadd(1, bias[1], 0);
    if constexpr (kSecond && kBiasSecond) {
      _tile_loadd(2, bias[0], 0);
      if constexpr (kPair) _tile_loadd(3, bias[1], 0);
    } else if constexpr (kSecond) {
      _tile_zero(2);
      if constexpr (kPair) _tile_zero(3);
    }
  }
  for (int32_t i = 0; i < work.tiles; ++i) {
    const size_t k = static_cast<size_t>(i) * 64, at = static_cast<size_t>(i) * 1024;
    _tile_loadd(6, w + at, 64);
    _tile_stream_loadd(4, first + k, stride);
    _tile_dpbssd(0, 4, 6);
    if constexpr (kPair) {
      _tile_loadd(7, w + work.panel_bytes + at, 64);
      _tile_dpbssd(1, 4, 7);
    }
    if constexpr (kSecond) {
      _tile_stream_loadd(5, second + k, stride);
      _tile_dpbssd(2, 5, 6);
      if constexpr (kPair) _tile_dpbssd(3, 5, 7);
    }
  }
  const size_t row_bytes = out.stride * sizeof(int32_t);
  _tile_stored(0, out.tiles[0][0], row_bytes);
  if constexpr (kPair) _tile_stored(1, out.tiles[0][1], row_bytes);
  if constexpr (kSecond) _tile_stored(2, out.tiles[1][0], row_bytes);
  if constexpr (kSecond && kPair) _tile_stored(3, out.tiles[1][1], row_bytes);
  MemoryBarrier();
}

FIXPOINT_INLINE int32_t* AccAt(const LinearArgs& args, int32_t token, int32_t column) {
  return args.acc + static_cast<size_t>(token) * args.acc_stride + (column - args.output_begin);
}

// hi + rs(lo, 8) of `rows` tokens of an int16 site.
FIXPOINT_INLINE void StoreWideTile(const LinearArgs& args, int32_t token, int32_t rows,
                                   int32_t column, const int32_t* high, const int32_t* low) {
  const SafeRound round(8);
  for (int32_t r = 0; r < rows; ++r) {
    _mm512_storeu_si512(AccAt(args, token + r, column),
                        _mm512_add_epi32(_mm512_load_si512(high + r * kPanel),
                                         round(_mm512_load_si512(low + r * kPanel))));
  }
}

// A block of up to 32 tokens (16 of an int16 site) against one or two panels.
template <bool kPair>
FIXPOINT_INLINE void Block(const Work& work, int32_t token, int32_t rows, int32_t panel) {
  const LinearArgs& args = *work.args;
  const int32_t column = panel * kPanel;
  const size_t offset = static_cast<size_t>(token) * args.x.stride;
  const int8_t* x = args.x.hi + offset;
  if (args.x.lo != nullptr) {
    alignas(64) int32_t out[4][kTileRows * kPanel];
    Multiply<true, kPair, false>(work, x, args.x.lo + offset, panel,
                                 {{{out[0], out[1]}, {out[2], out[3]}}, kPanel});
    StoreWideTile(args, token, rows, column, out[0], out[2]);
    if (kPair) StoreWideTile(args, token, rows, column + kPanel, out[1], out[3]);
    return;
  }
  int32_t* acc = AccAt(args, token, column);
  if (rows <= kTileRows) {
    Multiply<false, kPair, false>(work, x, x, panel, {{{acc, acc + kPanel}, {}}, args.acc_stride});
  } else {
    int32_t* second = acc + kTileRows * args.acc_stride;
    Multiply<true, kPair, true>(
        work, x, x + kTileRows * args.x.stride, panel,
        {{{acc, acc + kPanel}, {second, second + kPanel}}, args.acc_stride});
  }
}

// Tokens [token, token + count) in blocks of `rows`, for which the tiles are configured. The last
// block ends with the last token and may compute tokens of the one before again.
template <bool kPair>
FIXPOINT_INLINE void Blocks(const Work& work, int32_t token, int32_t count, int32_t rows,
                            int32_t panel) {
  for (int32_t t = 0; t < count; t += rows) {
    Block<kPair>(work, token + (t + rows <= count ? t : count - rows), rows, panel);
  }
}

// Equal blocks, so that the weights are read once.
void TokenRange(const Work& work, int32_t token, int32_t count, int32_t begin, int32_t end) {
  const bool wide = work.args->x.lo != nullptr;
  const int32_t most = wide ? kTileRows : 2 * kTileRows;
  const int32_t blocks = (count + most - 1) / most;
  const int32_t rows = (count + blocks - 1) / blocks;
  if (rows < most) {
    if (wide) {
      Configure(rows, rows);
    } else if (rows > kTileRows) {
      Configure(kTileRows, rows - kTileRows);
    } else {
      Configure(rows, kTileRows);
    }
  }
  int32_t panel = begin;
  for (; panel + 1 < end; panel += 2) Blocks<true>(work, token, count, rows, panel);
  if (panel < end) Blocks<false>(work, token, count, rows, panel);
  if (rows < most) Configure(kTileRows, kTileRows);
}

}  // namespace

void ThreadInit() { Configure(kTileRows, kTileRows); }

void Linear(const LinearArgs& args) {
  if (args.tokens < kMinTokens) return vnni::Linear(args);
  const int32_t tiles = (args.depth + 63) / 64;
  const Work work{&args, static_cast<const int8_t*>(args.packed),
                  static_cast<size_t>(tiles) * 64 * kPanel, tiles};
  const int32_t begin = args.output_begin / kPanel;
  const int32_t end = (args.output_end + kPanel - 1) / kPanel;
  const int32_t chunks = (args.tokens + kTokenChunk - 1) / kTokenChunk;
  const int32_t step = (args.tokens + chunks - 1) / chunks;
  for (int32_t token = 0; token < args.tokens; token += step) {
    const int32_t left = args.tokens - token;
    TokenRange(work, token, left < step ? left : step, begin, end);
  }
}

}  // namespace fixpoint::amx
