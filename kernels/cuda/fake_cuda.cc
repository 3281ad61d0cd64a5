#include "kernels/cuda/fake_cuda.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <new>

namespace fixpoint {
namespace {

constexpr size_t kAllocationAlignment = 256;  // what cudaMalloc promises
constexpr uint64_t kFirstAlgorithm = 42;

std::map<void*, int64_t>& Allocations() {
  static auto& allocations = *new std::map<void*, int64_t>;
  return allocations;
}

cublasStatus_t Broken(const char* rule) {
  FakeCuda().broken_rule = rule;
  return CUBLAS_STATUS_INVALID_VALUE;
}

cudaError_t Malloc(void** memory, size_t bytes) {
  FakeCudaState& state = FakeCuda();
  if (state.allocated_bytes + static_cast<int64_t>(bytes) > state.memory_bytes)
    return cudaErrorMemoryAllocation;
  *memory = ::operator new (bytes, std::align_val_t{kAllocationAlignment});
  std::memset(*memory, 0xff, bytes);  // NaN: what is read without having been written shows
  Allocations()[*memory] = static_cast<int64_t>(bytes);
  state.allocated_bytes += static_cast<int64_t>(bytes);
  ++state.live_objects;
  return cudaSuccess;
}

cudaError_t Free(void* memory) {
  const auto found = Allocations().find(memory);
  if (found == Allocations().end()) return cudaErrorInvalidValue;
  FakeCuda().allocated_bytes -= found->second;
  --FakeCuda().live_objects;
  Allocations().erase(found);
  ::operator delete (memory, std::align_val_t{kAllocationAlignment});
  return cudaSuccess;
}

// Whether the `bytes` from `memory` on are within one allocation.
bool OnDevice(const void* memory, int64_t bytes) {
  const auto* const begin = static_cast<const char*>(memory);
  auto next = Allocations().upper_bound(const_cast<void*>(memory));
  if (next == Allocations().begin()) return false;
  --next;
  return begin + bytes <= static_cast<const char*>(next->first) + next->second;
}

cudaError_t Memcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                     size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  if (stream == nullptr || width > to_pitch || width > from_pitch) return cudaErrorInvalidValue;
  const bool up = kind == cudaMemcpyHostToDevice;
  if (!OnDevice(up ? to : from,
                static_cast<int64_t>((height - 1) * (up ? to_pitch : from_pitch) + width)))
    return cudaErrorIllegalAddress;
  ++(up ? FakeCuda().uploads : FakeCuda().downloads);
  for (size_t row = 0; row < height; ++row) {
    std::memcpy(static_cast<char*>(to) + row * to_pitch,
                static_cast<const char*>(from) + row * from_pitch, width);
  }
  return cudaSuccess;
}

cudaError_t GetDeviceCount(int* count) {
  *count = FakeCuda().devices;
  return FakeCuda().driver_error;
}

cudaError_t SetDevice(int device) {
  return device < FakeCuda().devices ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t GetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? FakeCuda().capability_major : 5;
  return cudaSuccess;
}

cudaError_t MemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  const FakeCudaState& state = FakeCuda();
  *total_bytes = static_cast<size_t>(state.memory_bytes);
  *free_bytes =
      static_cast<size_t>(state.free_bytes_shown >= 0 ? state.free_bytes_shown
                                                      : state.memory_bytes - state.allocated_bytes);
  return cudaSuccess;
}

// Opaque handles are addresses of these.
struct Operation {
  cublasOperation_t transpose_a = CUBLAS_OP_N;
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  cudaDataType_t scale = CUDA_R_32F;
};
struct MatrixLayout {
  cudaDataType_t type = CUDA_R_32F;
  uint64_t rows = 0, columns = 0;
  int64_t leading_dimension = 0;
};

template <typename Handle, typename... Args>
void Make(Handle* handle, auto* object) {
  *handle = reinterpret_cast<Handle>(object);
  ++FakeCuda().live_objects;
}

template <typename Object>
auto Destroy(void* handle) {
  delete reinterpret_cast<Object*>(handle);
  --FakeCuda().live_objects;
}

cublasStatus_t CreateOperation(cublasLtMatmulDesc_t* handle, cublasComputeType_t compute,
                               cudaDataType_t scale) {
  Make(handle, new Operation{.compute = compute, .scale = scale});
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t SetOperation(cublasLtMatmulDesc_t handle, cublasLtMatmulDescAttributes_t attribute,
                            const void* value, size_t bytes) {
  if (attribute != CUBLASLT_MATMUL_DESC_TRANSA || bytes != sizeof(int32_t))
    return Broken("unknown attribute of the operation");
  std::memcpy(&reinterpret_cast<Operation*>(handle)->transpose_a, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t CreateLayout(cublasLtMatrixLayout_t* handle, cudaDataType type, uint64_t rows,
                            uint64_t columns, int64_t leading_dimension) {
  if (rows == 0 || columns == 0 || leading_dimension < static_cast<int64_t>(rows))
    return Broken("leading dimension below the number of rows");
  Make(handle, new MatrixLayout{type, rows, columns, leading_dimension});
  return CUBLAS_STATUS_SUCCESS;
}

int64_t ElementBytes(const MatrixLayout& m) {
  return m.type == CUDA_R_8I ? 1 : m.type == CUDA_R_16BF ? 2 : 4;
}

// int8 products have int32 sums and want the first matrix transposed.
bool TypesMatch(const Operation& op, cudaDataType_t operand, cudaDataType_t result) {
  if (operand == CUDA_R_8I) {
    return op.compute == CUBLAS_COMPUTE_32I && op.scale == CUDA_R_32I && result == CUDA_R_32I &&
           op.transpose_a == CUBLAS_OP_T;
  }
  return op.compute == CUBLAS_COMPUTE_32F && op.scale == CUDA_R_32F && result == CUDA_R_32F;
}

cublasStatus_t CheckShapes(cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a_layout,
                           cublasLtMatrixLayout_t b_layout, cublasLtMatrixLayout_t d_layout) {
  const auto& op = *reinterpret_cast<const Operation*>(operation);
  const auto& a = *reinterpret_cast<const MatrixLayout*>(a_layout);
  const auto& b = *reinterpret_cast<const MatrixLayout*>(b_layout);
  const auto& d = *reinterpret_cast<const MatrixLayout*>(d_layout);
  const bool transposed = op.transpose_a == CUBLAS_OP_T;
  if (a.type != b.type || !TypesMatch(op, a.type, d.type)) return Broken("types");
  if ((transposed ? a.columns : a.rows) != d.rows || b.columns != d.columns ||
      (transposed ? a.rows : a.columns) != b.rows)
    return Broken("shapes do not match");
  for (const MatrixLayout* m : {&a, &b, &d}) {
    if (m->leading_dimension * ElementBytes(*m) % 16 != 0)
      return Broken("leading dimension is no multiple of 16 bytes");
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t GetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t operation,
                            cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                            cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                            cublasLtMatmulPreference_t preference, int requested,
                            cublasLtMatmulHeuristicResult_t results[], int* found) {
  if (preference == nullptr || requested < 1 || c != d) return Broken("heuristic's arguments");
  ++FakeCuda().heuristics;
  *found = std::min(requested, FakeCuda().algorithms);
  for (int i = 0; i < *found; ++i) {
    results[i] = {};
    results[i].algo.data[0] = kFirstAlgorithm + static_cast<uint64_t>(i);
  }
  return CheckShapes(operation, a, b, d);
}

// The number of an algorithm of the heuristic; others are -1.
int NumberOf(const cublasLtMatmulAlgo_t* algorithm) {
  if (algorithm == nullptr || algorithm->data[0] < kFirstAlgorithm) return -1;
  const uint64_t number = algorithm->data[0] - kFirstAlgorithm;
  return number < static_cast<uint64_t>(FakeCuda().algorithms) ? static_cast<int>(number) : -1;
}

cublasStatus_t CheckAlgorithm(cublasLtHandle_t, cublasLtMatmulDesc_t operation,
                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                              const cublasLtMatmulAlgo_t* algorithm,
                              cublasLtMatmulHeuristicResult_t* result) {
  const int number = NumberOf(algorithm);
  if (number < 0 || number == FakeCuda().refused_algorithm || c != d)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  *result = {};
  return CheckShapes(operation, a, b, d);
}

cublasStatus_t AlgorithmAttribute(const cublasLtMatmulAlgo_t* algorithm,
                                  cublasLtMatmulAlgoConfigAttributes_t attribute, void* value,
                                  size_t bytes, size_t* written) {
  const auto number =
      attribute == CUBLASLT_ALGO_CONFIG_ID ? static_cast<uint32_t>(NumberOf(algorithm)) : 0;
  if (bytes != sizeof(number)) return Broken("size of an attribute of the algorithm");
  std::memcpy(value, &number, bytes);
  *written = bytes;
  return CUBLAS_STATUS_SUCCESS;
}

float Load(const MatrixLayout& m, const void* data, uint64_t row, uint64_t column) {
  const uint64_t index = column * static_cast<uint64_t>(m.leading_dimension) + row;
  if (m.type == CUDA_R_32F) return static_cast<const float*>(data)[index];
  if (m.type == CUDA_R_8I) return static_cast<const int8_t*>(data)[index];
  return std::bit_cast<float>(uint32_t{static_cast<const uint16_t*>(data)[index]} << 16);
}

bool FitsDevice(const MatrixLayout& m, const void* data) {
  if (FakeCuda().foreign_memory) return true;
  return reinterpret_cast<uintptr_t>(data) % kAllocationAlignment == 0 &&
         OnDevice(data, (static_cast<int64_t>(m.columns - 1) * m.leading_dimension +
                         static_cast<int64_t>(m.rows)) *
                            ElementBytes(m));
}

// D in T, from operands of any type.
template <typename T>
void Multiply(const Operation& op, const void* alpha, const MatrixLayout& am, const void* a,
              const MatrixLayout& bm, const void* b, const void* beta, const MatrixLayout& dm,
              void* d, T mistake) {
  const T scale = *static_cast<const T*>(alpha), old = *static_cast<const T*>(beta);
  for (uint64_t column = 0; column < dm.columns; ++column) {
    for (uint64_t row = 0; row < dm.rows; ++row) {
      T sum = 0;
      for (uint64_t k = 0; k < bm.rows; ++k) {
        sum += static_cast<T>(
            (op.transpose_a == CUBLAS_OP_T ? Load(am, a, k, row) : Load(am, a, row, k)) *
            Load(bm, b, k, column));
      }
      T& out = static_cast<T*>(d)[column * static_cast<uint64_t>(dm.leading_dimension) + row];
      out = scale * sum + (old == 0 ? 0 : old * out) + mistake;
    }
  }
}

cublasStatus_t Matmul(cublasLtHandle_t, cublasLtMatmulDesc_t operation, const void* alpha,
                      const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                      cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                      cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout,
                      const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                      size_t workspace_bytes, cudaStream_t stream) {
  FakeCudaState& state = FakeCuda();
  if (state.fail_matmul_after >= 0 && state.fail_matmul_after-- == 0)
    return CUBLAS_STATUS_EXECUTION_FAILED;
  if (const cublasStatus_t status = CheckShapes(operation, a_layout, b_layout, d_layout))
    return status;
  const int number = NumberOf(algorithm);
  const bool in_place =
      stream != nullptr && OnDevice(workspace, static_cast<int64_t>(workspace_bytes));
  if (number < 0 || !(in_place || state.foreign_memory) || c != d || c_layout != d_layout)
    return Broken("algorithm, stream, C or workspace");
  const auto& op = *reinterpret_cast<const Operation*>(operation);
  const auto& am = *reinterpret_cast<const MatrixLayout*>(a_layout);
  const auto& bm = *reinterpret_cast<const MatrixLayout*>(b_layout);
  const auto& dm = *reinterpret_cast<const MatrixLayout*>(d_layout);
  if (!FitsDevice(am, a) || !FitsDevice(bm, b) || !FitsDevice(dm, d))
    return Broken("operand is misaligned or beyond its allocation");
  ++state.products;
  if (number == state.lazy_algorithm) return CUBLAS_STATUS_SUCCESS;
  const bool wrong = state.wrong_products || number == state.wrong_algorithm;
  if (dm.type == CUDA_R_32I) {
    Multiply<int32_t>(op, alpha, am, a, bm, b, beta, dm, d, wrong ? 1 : 0);
  } else {
    Multiply<float>(op, alpha, am, a, bm, b, beta, dm, d, wrong ? 1 : 0);
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t SetPreference(cublasLtMatmulPreference_t,
                             cublasLtMatmulPreferenceAttributes_t attribute, const void*,
                             size_t bytes) {
  const bool alignment = attribute >= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES &&
                         attribute <= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES;
  if (alignment && bytes == sizeof(uint32_t)) return CUBLAS_STATUS_SUCCESS;
  return attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES && bytes == sizeof(uint64_t)
             ? CUBLAS_STATUS_SUCCESS
             : Broken("unknown preference");
}

CudaApi MakeApi() {
  CudaApi api;
  api.cudaDeviceGetAttribute = GetAttribute;
  api.cudaFree = Free;
  api.cudaGetDeviceCount = GetDeviceCount;
  api.cudaGetErrorName = [](cudaError_t error) -> const char* {
    if (error == cudaErrorMemoryAllocation) return "cudaErrorMemoryAllocation";
    return error == cudaErrorInsufficientDriver ? "cudaErrorInsufficientDriver" : "another error";
  };
  api.cudaGetErrorString = [](cudaError_t) -> const char* { return "text"; };
  api.cudaGetLastError = []() { return cudaSuccess; };
  api.cudaMalloc = Malloc;
  api.cudaMemGetInfo = MemGetInfo;
  api.cudaMemcpy2DAsync = Memcpy2D;
  api.cudaSetDevice = SetDevice;
  api.cudaStreamCreateWithFlags = [](cudaStream_t* stream, unsigned) {
    Make(stream, new char);
    return cudaSuccess;
  };
  api.cudaStreamDestroy = [](cudaStream_t stream) {
    Destroy<char>(stream);
    return cudaSuccess;
  };
  api.cudaStreamSynchronize = [](cudaStream_t) { return cudaSuccess; };
  api.cublasLtCreate = [](cublasLtHandle_t* handle) {
    Make(handle, new char);
    return CUBLAS_STATUS_SUCCESS;
  };
  api.cublasLtDestroy = [](cublasLtHandle_t handle) {
    Destroy<char>(handle);
    return CUBLAS_STATUS_SUCCESS;
  };
  api.cublasLtGetStatusName = [](cublasStatus_t status) -> const char* {
    return status == CUBLAS_STATUS_EXECUTION_FAILED ? "CUBLAS_STATUS_EXECUTION_FAILED"
                                                    : "CUBLAS_STATUS_INVALID_VALUE";
  };
  api.cublasLtGetVersion = []() -> size_t { return 130100; };
  api.cublasLtMatmul = Matmul;
  api.cublasLtMatmulAlgoCheck = CheckAlgorithm;
  api.cublasLtMatmulAlgoConfigGetAttribute = AlgorithmAttribute;
  api.cublasLtMatmulAlgoGetHeuristic = GetHeuristic;
  api.cublasLtMatmulDescCreate = CreateOperation;
  api.cublasLtMatmulDescDestroy = [](cublasLtMatmulDesc_t handle) {
    Destroy<Operation>(handle);
    return CUBLAS_STATUS_SUCCESS;
  };
  api.cublasLtMatmulDescSetAttribute = SetOperation;
  api.cublasLtMatmulPreferenceCreate = [](cublasLtMatmulPreference_t* handle) {
    Make(handle, new char);
    return CUBLAS_STATUS_SUCCESS;
  };
  api.cublasLtMatmulPreferenceDestroy = [](cublasLtMatmulPreference_t handle) {
    Destroy<char>(handle);
    return CUBLAS_STATUS_SUCCESS;
  };
  api.cublasLtMatmulPreferenceSetAttribute = SetPreference;
  api.cublasLtMatrixLayoutCreate = CreateLayout;
  api.cublasLtMatrixLayoutDestroy = [](cublasLtMatrixLayout_t handle) {
    Destroy<MatrixLayout>(handle);
    return CUBLAS_STATUS_SUCCESS;
  };
  return api;
}

}  // namespace

FakeCudaState& FakeCuda() {
  static FakeCudaState state;
  return state;
}

const CudaApi& FakeCudaApi() {
  static const CudaApi api = MakeApi();
  return api;
}

}  // namespace fixpoint
