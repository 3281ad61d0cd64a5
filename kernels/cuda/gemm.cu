// int8 products of few tokens. The weights are the 16-row operand of the matrix instruction, tokens
// its 8 columns: a step of up to 64 tokens pads them to 8 at most and is bound by the weights'
// bytes. Weights stay row-major, so that cuBLASLt reads the same copy for more tokens.
//
// A block owns 16 * kRows16 outputs and 8 * kCols8 tokens (of both planes of an int16 site). Its
// warps take turns along the depth, 64 bytes of each row at a time: together they read 512
// consecutive bytes a row. Their partial sums meet in shared memory.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launchers.h"

namespace fixpoint::FIXPOINT_CUDA_NAMESPACE {
namespace {

constexpr int32_t kWarps = 8;
constexpr uint32_t kThreads = 32 * kWarps;

// Rows behind the sums of a token: lanes of one instruction then add to 32 different banks.
constexpr int32_t kPadding = 4;

struct GemmParams {
  CudaGemmArgs args;
  int32_t columns;  // tokens times planes
};

template <int32_t kRows16, int32_t kCols8>
constexpr size_t GemmSharedBytes() {
  return sizeof(int32_t) * 8 * kCols8 * (16 * kRows16 + kPadding);
}

// Row of plane and token `column`; clamped, so that columns behind the last read something valid
// that nobody stores.
FIXPOINT_DEVICE const int8_t* ActivationRow(const GemmParams& p, int32_t column) {
  const int32_t c = column < p.columns ? column : p.columns - 1;
  const bool low = c >= p.args.tokens;
  const int8_t* plane = low ? p.args.x.lo : p.args.x.hi;
  return plane + static_cast<size_t>(low ? c - p.args.tokens : c) * p.args.x.stride;
}

template <int32_t kRows16, int32_t kCols8, int32_t kAhead>
FIXPOINT_KERNEL(kThreads, 1)
GemmKernel(const GemmParams p) {
  FIXPOINT_SHARED(shared);
  auto* sums = reinterpret_cast<int32_t*>(shared);  // [8 * kCols8][16 * kRows16 + kPadding]
  constexpr int32_t kRows = 16 * kRows16, kColumns = 8 * kCols8, kStride = kRows + kPadding;
  for (int32_t i = ThreadX(); i < kColumns * kStride; i += kThreads) sums[i] = 0;
  SyncThreads();

  const int32_t g = Lane() >> 2, t = Lane() & 3;
  const int32_t first_row = BlockX() * kRows, first_column = BlockZ() * kColumns;
  const int8_t* w[kRows16];  // row g of each tile; a last tile may lie behind the outputs
  FIXPOINT_UNROLL
  for (int32_t i = 0; i < kRows16; ++i) {
    const int32_t row = first_row + 16 * i < p.args.outputs ? first_row + 16 * i : first_row;
    w[i] = p.args.weights + static_cast<size_t>(row + g) * p.args.depth + 16 * t;
  }
  const int8_t* x[kCols8];
  FIXPOINT_UNROLL
  for (int32_t j = 0; j < kCols8; ++j) {
    x[j] = ActivationRow(p, first_column + 8 * j + g) + 16 * t;
  }
  const size_t eight_rows = static_cast<size_t>(8) * p.args.depth;

  int32_t acc[kRows16][kCols8][4] = {};
  const int32_t steps = p.args.depth / kGemmDepthStep;
  const auto border = [&](int32_t split) {
    return static_cast<int32_t>(static_cast<int64_t>(steps) * split / p.args.splits);
  };
  const int32_t end = border(BlockY() + 1);
  for (int32_t step = border(BlockY()) + Warp(); step < end; step += kWarps * kAhead) {
    if constexpr (kAhead == 1) {
      // The sums fill the registers: tokens come one tile after the other.
      const size_t offset = static_cast<size_t>(step) * kGemmDepthStep;
      Quad low[kRows16], high[kRows16];
      FIXPOINT_UNROLL
      for (int32_t i = 0; i < kRows16; ++i) {
        low[i] = LoadQuad(w[i] + offset);
        high[i] = LoadQuad(w[i] + eight_rows + offset);
      }
      FIXPOINT_UNROLL
      for (int32_t j = 0; j < kCols8; ++j) {
        const Quad b = LoadQuad(x[j] + offset);
        FIXPOINT_UNROLL
        for (int32_t i = 0; i < kRows16; ++i) MultiplyTile64(acc[i][j], low[i], high[i], b);
      }
    } else {
      Quad low[kAhead][kRows16], high[kAhead][kRows16], b[kAhead][kCols8];
      // All loads of some steps before the first product: that many bytes are in flight.
      FIXPOINT_UNROLL
      for (int32_t a = 0; a < kAhead; ++a) {
        const int32_t at = step + a * kWarps;
        if (at >= end) break;
        const size_t offset = static_cast<size_t>(at) * kGemmDepthStep;
        FIXPOINT_UNROLL
        for (int32_t i = 0; i < kRows16; ++i) {
          low[a][i] = LoadQuad(w[i] + offset);
          high[a][i] = LoadQuad(w[i] + eight_rows + offset);
        }
        FIXPOINT_UNROLL
        for (int32_t j = 0; j < kCols8; ++j) b[a][j] = LoadQuad(x[j] + offset);
      }
      FIXPOINT_UNROLL
      for (int32_t a = 0; a < kAhead; ++a) {
        if (step + a * kWarps >= end) break;
        FIXPOINT_UNROLL
        for (int32_t i = 0; i < kRows16; ++i) {
          FIXPOINT_UNROLL
          for (int32_t j = 0; j < kCols8; ++j) {
            MultiplyTile64(acc[i][j], low[a][i], high[a][i], b[a][j]);
          }
        }
      }
    }
  }

  FIXPOINT_UNROLL
  for (int32_t i = 0; i < kRows16; ++i) {
    FIXPOINT_UNROLL
    for (int32_t j = 0; j < kCols8; ++j) {
      FIXPOINT_UNROLL
      for (int32_t e = 0; e < 4; ++e) {
        const int32_t row = 16 * i + g + 8 * (e >> 1), column = 8 * j + 2 * t + (e & 1);
        AtomicAddShared(sums + column * kStride + row, acc[i][j][e]);
      }
    }
  }
  SyncThreads();

  const size_t split_offset = static_cast<size_t>(BlockY()) * p.args.split_stride;
  for (int32_t i = ThreadX(); i < kRows * kColumns; i += kThreads) {
    const int32_t row = i % kRows, column = first_column + i / kRows;
    if (first_row + row >= p.args.outputs || column >= p.columns) continue;
    const bool is_low = column >= p.args.tokens;
    const auto token = static_cast<size_t>(is_low ? column - p.args.tokens : column);
    p.args.acc[(is_low ? p.args.plane_stride : 0) + split_offset + token * p.args.acc_stride +
               static_cast<size_t>(first_row + row)] = sums[i / kRows * kStride + row];
  }
}

template <int32_t kRows16, int32_t kCols8, int32_t kAhead>
int LaunchGemm(const GemmParams& p, CudaStream* stream) {
  constexpr int32_t kRows = 16 * kRows16, kColumns = 8 * kCols8;
  const Grid grid = {static_cast<uint32_t>((p.args.outputs + kRows - 1) / kRows),
                     static_cast<uint32_t>(p.args.splits),
                     static_cast<uint32_t>((p.columns + kColumns - 1) / kColumns)};
  return Launch(GemmKernel<kRows16, kCols8, kAhead>, grid, kThreads,
                GemmSharedBytes<kRows16, kCols8>(), stream, p);
}

}  // namespace

int Gemm(const CudaGemmArgs& args, CudaStream* stream) {
  const GemmParams p = {args, args.x.lo == nullptr ? args.tokens : 2 * args.tokens};
  // Rows grow with the columns: activations come from the L2 cache, and a block reads 8 * kCols8
  // rows of them for its 16 * kRows16 rows of weights.
  if (p.columns <= 8) return LaunchGemm<1, 1, 4>(p, stream);
  if (p.columns <= 16) return LaunchGemm<1, 2, 4>(p, stream);
  if (p.columns <= 32) return LaunchGemm<2, 4, 2>(p, stream);
  // Not 4 * 16 rows: sm_120 would spill registers.
  return LaunchGemm<3, 8, 1>(p, stream);
}

}  // namespace fixpoint::FIXPOINT_CUDA_NAMESPACE
