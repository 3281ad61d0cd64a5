#include "calibrator/second_moments.h"

#include <algorithm>
#include <bit>
#include <cstddef>

#include "base/check.h"
#include "calibrator/vector_loops.h"

namespace fixpoint {
namespace {

constexpr int64_t kBatchRows = 1024;  // see the class comment
// The matrix is symmetric: of each panel of columns only rows from the panel's own on are computed.
constexpr int64_t kPanel = 256;
constexpr int64_t kTransposeTile = 64;

void Reserve(AlignedBuffer& buffer, int64_t bytes) {
  if (static_cast<int64_t>(buffer.size_bytes()) < bytes)
    buffer = AlignedBuffer(static_cast<size_t>(bytes));
}

float FromBf16(uint16_t x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16); }

}  // namespace

void MomentsCollector::Add(const uint16_t* hi, const uint16_t* lo, int64_t rows, int64_t stride,
                           SecondMoments* moments) {
  CHECK(gemm_.fast_bf16()) << "bf16 rows without bf16 products";
  CHECK_LE(moments->depth, stride);
  AddRows<uint16_t>(
      [=, depth = moments->depth](int64_t row, uint16_t* out) {
        const uint16_t* from = hi + row * stride;
        if (lo == nullptr) {
          std::copy(from, from + depth, out);
          return;
        }
        float sums[kTransposeTile];
        for (int64_t first = 0; first < depth; first += kTransposeTile) {
          const int64_t count = std::min(kTransposeTile, depth - first);
          for (int64_t i = 0; i < count; ++i) {
            sums[i] = FromBf16(from[first + i]) + FromBf16(lo[row * stride + first + i]);
          }
          Vec().to_bf16(sums, count, out + first);
        }
      },
      rows, moments);
}

void MomentsCollector::Add(const float* x, int64_t rows, int64_t stride, SecondMoments* moments) {
  CHECK_LE(moments->depth, stride);
  AddRows<float>(
      [=, depth = moments->depth](int64_t row, float* out) {
        std::copy(x + row * stride, x + row * stride + depth, out);
      },
      rows, moments);
}

template <typename T, typename Read>
void MomentsCollector::AddRows(const Read& read, int64_t rows, SecondMoments* moments) {
  const int64_t depth = moments->depth;
  CHECK_GT(depth, 0);
  if (moments->sums.empty()) moments->sums.resize(static_cast<size_t>(depth * depth));
  CHECK_EQ(static_cast<int64_t>(moments->sums.size()), depth * depth);
  constexpr auto kElement = static_cast<int64_t>(sizeof(T));
  Reserve(rows_, std::min(rows, kBatchRows) * depth * kElement);
  Reserve(transposed_, std::min(rows, kBatchRows) * depth * kElement);
  Reserve(product_, depth * std::min(depth, kPanel) * 4);
  for (int64_t first = 0; first < rows; first += kBatchRows) {
    const int64_t count = std::min(kBatchRows, rows - first);
    pool_.ParallelFor(count, kTransposeTile, [&](int64_t begin, int64_t end, int) {
      T* const batch = rows_.as<T>();
      T* const transposed = transposed_.as<T>();
      for (int64_t row = begin; row < end; ++row) read(first + row, batch + row * depth);
      for (int64_t column = 0; column < depth; ++column) {
        for (int64_t row = begin; row < end; ++row)
          transposed[column * count + row] = batch[row * depth + column];
      }
    });
    AddBatch(sizeof(T) == 2 ? GemmType::kBf16 : GemmType::kFloat32, count, moments);
  }
}

void MomentsCollector::AddBatch(GemmType type, int64_t rows, SecondMoments* moments) {
  const int64_t depth = moments->depth;
  for (int64_t first = 0; first < depth; first += kPanel) {
    const int64_t width = std::min(kPanel, depth - first);
    gemm_.Multiply({.type = type,
                    .rows = depth - first,
                    .outputs = width,
                    .depth = rows,
                    .x = transposed_.data() + first * rows * BytesOf(type),
                    .x_stride = rows,
                    .w = rows_.data() + first * BytesOf(type),
                    .w_stride = depth,
                    .w_by_depth = true,
                    .y = product_.as<float>(),
                    .y_stride = width});
    // Each element is written once: (i, j) from below the diagonal to both places.
    pool_.ParallelFor(depth - first, kTransposeTile, [&](int64_t begin, int64_t end, int) {
      float* const sums = moments->sums.data();
      const float* const product = product_.as<float>();
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t j = 0; j < std::min(i + 1, width); ++j) {
          sums[(first + i) * depth + first + j] += product[i * width + j];
        }
      }
      for (int64_t j = 0; j < width; ++j) {
        for (int64_t i = std::max(begin, j + 1); i < end; ++i)
          sums[(first + j) * depth + first + i] += product[i * width + j];
      }
    });
  }
}

}  // namespace fixpoint
