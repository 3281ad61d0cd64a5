// Sums of products of int8 rows with 16 columns, in registers: DotSums with sdot, MatrixSums with
// smmla (only where the compiler has it: the i8mm level). Everything here has internal linkage
// (isa_arithmetic.h). Partial sums may wrap; arithmetic modulo 2^32 keeps the result exact.
//
// A tile is what the KV cache holds (ops.h): steps of [16 columns][4 inputs], `step_bytes` apart. A
// panel is what a level packs weights to (neon.h). Both are taken 16 inputs at a time: x[r] are 16
// inputs of row r.
#pragma once

#include "kernels/cpu/neon_common.h"

namespace fixpoint {
namespace {

constexpr int32_t kChunk = 16;            // inputs taken at a time
constexpr int32_t kPanel = 16;            // columns
constexpr int32_t kChunkBytes = 16 * 16;  // of a panel

template <int kRows>
struct DotSums {
  static constexpr int kRegisters = 4 * kRows;
  static constexpr int kInputs = 4;  // of a column in a panel

  FIXPOINT_INLINE void Clear() {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) acc[r][g] = vdupq_n_s32(0);
    }
  }
  template <int kStep>
  FIXPOINT_INLINE void AddStep(const int8x16_t (&x)[kRows], const int8_t* w) {
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      const int8x16_t four_columns = vld1q_s8(w + 16 * g);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        acc[r][g] = vdotq_laneq_s32(acc[r][g], four_columns, x[r], kStep);
      }
    }
  }
  FIXPOINT_INLINE void AddTile(const int8x16_t (&x)[kRows], const int8_t* w, size_t step_bytes) {
    AddStep<0>(x, w);
    AddStep<1>(x, w + step_bytes);
    AddStep<2>(x, w + 2 * step_bytes);
    AddStep<3>(x, w + 3 * step_bytes);
  }
  FIXPOINT_INLINE void AddPanel(const int8x16_t (&x)[kRows], const int8_t* w) { AddTile(x, w, 64); }
  // Columns [4 * group, 4 * group + 4) of a row.
  FIXPOINT_INLINE int32x4_t Sums(int row, int group) const { return acc[row][group]; }

  int32x4_t acc[kRows][4];
};

#ifdef __ARM_FEATURE_MATMUL_INT8
// smmla multiplies 2 rows x 8 inputs by 2 columns x 8 inputs. An odd last row goes as its own
// partner.
template <int kRows>
struct MatrixSums {
  static constexpr int kPairs = (kRows + 1) / 2;
  static constexpr int kRegisters = 8 * kPairs;
  static constexpr int kInputs = 8;  // of a column in a panel

  FIXPOINT_INLINE void Clear() {
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; ++p) {
#pragma GCC unroll 8
      for (int c = 0; c < 8; ++c) acc[p][c] = vdupq_n_s32(0);
    }
  }

  // Inputs 0 .. 7 (first) and 8 .. 15 (second) of the pairs of rows.
  struct Operands {
    explicit FIXPOINT_INLINE Operands(const int8x16_t (&x)[kRows]) {
#pragma GCC unroll 4
      for (int p = 0; p < kPairs; ++p) {
        const int64x2_t a = vreinterpretq_s64_s8(x[2 * p]);
        const int64x2_t b = vreinterpretq_s64_s8(x[2 * p + 1 < kRows ? 2 * p + 1 : 2 * p]);
        first[p] = vreinterpretq_s8_s64(vzip1q_s64(a, b));
        second[p] = vreinterpretq_s8_s64(vzip2q_s64(a, b));
      }
    }
    int8x16_t first[kPairs], second[kPairs];
  };

  FIXPOINT_INLINE void AddPair(const int8x16_t (&x)[kPairs], int8x16_t two_columns, int c) {
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; ++p) acc[p][c] = vmmlaq_s32(acc[p][c], x[p], two_columns);
  }
  FIXPOINT_INLINE void AddPanel(const int8x16_t (&x)[kRows], const int8_t* w) {
    const Operands rows(x);
#pragma GCC unroll 8
    for (int c = 0; c < 8; ++c) AddPair(rows.first, vld1q_s8(w + 16 * c), c);
#pragma GCC unroll 8
    for (int c = 0; c < 8; ++c) AddPair(rows.second, vld1q_s8(w + 128 + 16 * c), c);
  }
  // Two steps of 4 inputs side by side are a step of 8.
  FIXPOINT_INLINE void AddSteps(const int8x16_t (&x)[kPairs], const int8_t* w, size_t step_bytes) {
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      const int32x4_t a = vreinterpretq_s32_s8(vld1q_s8(w + 16 * g));
      const int32x4_t b = vreinterpretq_s32_s8(vld1q_s8(w + step_bytes + 16 * g));
      AddPair(x, vreinterpretq_s8_s32(vzip1q_s32(a, b)), 2 * g);
      AddPair(x, vreinterpretq_s8_s32(vzip2q_s32(a, b)), 2 * g + 1);
    }
  }
  FIXPOINT_INLINE void AddTile(const int8x16_t (&x)[kRows], const int8_t* w, size_t step_bytes) {
    const Operands rows(x);
    AddSteps(rows.first, w, step_bytes);
    AddSteps(rows.second, w + 2 * step_bytes, step_bytes);
  }
  FIXPOINT_INLINE int32x4_t Sums(int row, int group) const {
    const int32x4_t a = acc[row / 2][2 * group], b = acc[row / 2][2 * group + 1];
    return row % 2 == 0 ? vcombine_s32(vget_low_s32(a), vget_low_s32(b))
                        : vcombine_s32(vget_high_s32(a), vget_high_s32(b));
  }

  int32x4_t acc[kPairs][8];  // {row 0 x column 0, row 0 x column 1, row 1 x column 0, ...}
};
#endif

}  // namespace
}  // namespace fixpoint
