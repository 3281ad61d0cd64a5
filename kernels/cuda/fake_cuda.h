// CUDA and cuBLASLt in the host's memory, for tests without a GPU: enough of them for the functions
// of cuda_api.h. A product of float32, bf16 or int8 is computed by the definition, from the layouts
// and attributes that the caller set; broken rules of the real library (alignment, leading
// dimensions, types, unknown attributes) fail the call as the library would.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/cuda/cuda_api.h"

namespace fixpoint {

struct FakeCudaState {
  cudaError_t driver_error = cudaSuccess;  // of cudaGetDeviceCount
  int devices = 1;
  int capability_major = 9;
  int64_t memory_bytes = int64_t{1} << 30;
  int64_t free_bytes_shown = -1;  // of cudaMemGetInfo; -1: what is free
  bool foreign_memory = false;    // operands may lie anywhere, streams may be null
  int algorithms = 1;             // that the heuristic knows for every shape; numbered from 0
  int wrong_algorithm = -1;       // this one computes something else
  int lazy_algorithm = -1;        // this one writes nothing
  int refused_algorithm = -1;     // this one does not pass cublasLtMatmulAlgoCheck
  bool wrong_products = false;
  int fail_matmul_after = -1;  // counts down; at 0 cublasLtMatmul fails

  // What happened.
  int64_t allocated_bytes = 0;
  int64_t uploads = 0, downloads = 0, products = 0, heuristics = 0;
  int live_objects = 0;  // streams, handles, descriptors, layouts, preferences, allocations
  std::string broken_rule;
};

// The one fake machine, whose state the table's functions use. Reset before each test.
FakeCudaState& FakeCuda();
const CudaApi& FakeCudaApi();

}  // namespace fixpoint
