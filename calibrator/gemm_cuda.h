// FloatGemm on an NVIDIA GPU, by cuBLASLt. Can be called in any build: whether CUDA is there is
// found out when the program runs.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "calibrator/gemm.h"

namespace fixpoint {

// Products on CUDA device `device` (0, 1, ... as the driver counts), with float32 sums.
// - Multiply copies x to the device and y back, at the bus's speed from ordinary memory (about 6 to
//   12 GB/s, estimated, not measured): worth it from some thousand outputs on. w is copied too,
//   unless it has keep_w and was seen since ForgetWeights; copies are dropped, last used first to
//   stay, when 80 % of the memory free at the start is full. Large products go in pieces of 512
//   MiB. From one thread at a time.
// - MultiplyHere runs on `cpu`, in float32 when that has no bf16.
// - The same arguments give the same bits on the same device and cuBLAS version.
// - An error of the device after construction ends the process, with its name.
// FAILED_PRECONDITION: built without CUDA, no CUDA runtime or driver, no such device, a device
// without bf16; RESOURCE_EXHAUSTED: less than 1568 MiB of its memory are free. Messages begin with
// "cuda:N: ".
absl::StatusOr<std::unique_ptr<FloatGemm>> CreateCudaGemm(int device,
                                                          std::unique_ptr<FloatGemm> cpu);

}  // namespace fixpoint
