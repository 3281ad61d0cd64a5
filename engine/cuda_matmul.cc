#include "engine/cuda_matmul.h"

#include <cstdint>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kernels/cuda/kernels.h"

namespace fixpoint {
namespace {

constexpr int64_t kWorkspaceAlign = 256;
constexpr int64_t kMaxSize = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxSummands = ((int64_t{1} << 31) - 1) / (128 * 127);

template <typename... Parts>
absl::Status Bad(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("int8 product: ", parts...));
}

absl::Status CheckPointer(absl::string_view name, const void* pointer, int64_t align) {
  if (pointer == nullptr) return Bad(name, " is null");
  if (reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(align) != 0) {
    return Bad(name, " is not aligned to ", align, " bytes");
  }
  return absl::OkStatus();
}

// Rows of `size` elements of `bytes` each.
absl::Status CheckStride(absl::string_view name, int64_t stride, int64_t size, int64_t bytes) {
  if (stride < size) return Bad(name, " is ", stride, ", a row has ", size);
  if (stride > kMaxSize) return Bad(name, " is ", stride, ", too large");
  if (stride * bytes % kMatmulAlignBytes != 0) {
    return Bad(name, " is ", stride, ", no multiple of ", kMatmulAlignBytes, " bytes");
  }
  return absl::OkStatus();
}

bool Overlap(const void* a, int64_t a_bytes, const void* b, int64_t b_bytes) {
  const auto x = reinterpret_cast<uintptr_t>(a), y = reinterpret_cast<uintptr_t>(b);
  return x < y + static_cast<uintptr_t>(b_bytes) && y < x + static_cast<uintptr_t>(a_bytes);
}

}  // namespace

MatmulShape ShapeOf(const CudaMatmul& m) {
  return {m.outputs,  m.tokens,     m.depth,          m.weight_stride,
          m.x_stride, m.acc_stride, m.workspace_bytes};
}

std::string Describe(const MatmulShape& s) {
  return absl::StrCat("[", s.tokens, "][", s.depth, "] by [", s.outputs, "][", s.depth, "]");
}

absl::Status ValidateMatmul(const CudaMatmul& m) {
  if (m.tokens < 1 || m.tokens > kMaxSize) return Bad("tokens is ", m.tokens);
  if (m.outputs < 1 || m.outputs > kMaxSize || m.outputs % 4 != 0) {
    return Bad("outputs is ", m.outputs, ", must be a positive multiple of 4");
  }
  if (m.depth < 1 || m.depth > kMaxSummands || m.depth % 4 != 0) {
    return Bad("depth is ", m.depth, ", must be a positive multiple of 4 up to ", kMaxSummands);
  }
  RETURN_IF_ERROR(CheckPointer("weights", m.weights, kMatmulAlignBytes));
  RETURN_IF_ERROR(CheckPointer("x", m.x, kMatmulAlignBytes));
  RETURN_IF_ERROR(CheckPointer("acc", m.acc, kMatmulAlignBytes));
  RETURN_IF_ERROR(CheckStride("weight_stride", m.weight_stride, m.depth, 1));
  RETURN_IF_ERROR(CheckStride("x_stride", m.x_stride, m.depth, 1));
  RETURN_IF_ERROR(CheckStride("acc_stride", m.acc_stride, m.outputs, 4));
  if (m.workspace_bytes < 0) return Bad("workspace_bytes is ", m.workspace_bytes);
  if (m.workspace_bytes > 0) {
    RETURN_IF_ERROR(CheckPointer("workspace", m.workspace, kWorkspaceAlign));
  }
  const int64_t acc_bytes = ((m.tokens - 1) * m.acc_stride + m.outputs) * 4;
  const struct {
    absl::string_view name;
    const void* begin;
    int64_t bytes;
  } others[] = {{"weights", m.weights, (m.outputs - 1) * m.weight_stride + m.depth},
                {"x", m.x, (m.tokens - 1) * m.x_stride + m.depth},
                {"the workspace", m.workspace, m.workspace_bytes}};
  for (const auto& other : others) {
    if (other.bytes > 0 && Overlap(m.acc, acc_bytes, other.begin, other.bytes)) {
      return Bad("acc overlaps ", other.name);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckOwnKernelCanDo(const CudaMatmul& m) {
  if (m.outputs % kGemmOutputStep != 0 || m.depth % kGemmDepthStep != 0) {
    return Bad(Describe(ShapeOf(m)), " is not in steps of ", kGemmOutputStep, " outputs and ",
               kGemmDepthStep, " of depth");
  }
  if (m.weight_stride != m.depth) {
    return Bad("weight_stride is ", m.weight_stride, ", must be the depth, ", m.depth);
  }
  return absl::OkStatus();
}

}  // namespace fixpoint
