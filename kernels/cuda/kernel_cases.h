// Every CUDA kernel against the reference, as functions that know neither a test framework nor a
// device: kernels/cuda/emulated_test.cc runs them on the emulator, scripts/gpu_check.sh on a GPU.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "kernels/cuda/kernels.h"

namespace fixpoint {

// Where kernels run. A failing call ends the process with a message.
class CaseDevice {
 public:
  virtual ~CaseDevice() = default;
  virtual const CudaKernels& kernels() const = 0;
  virtual CudaStream* stream() { return nullptr; }
  virtual void* Allocate(size_t bytes) = 0;  // aligned to 256 bytes, at least one byte
  virtual void Free(void* memory) = 0;
  virtual void Upload(void* device, const void* host, size_t bytes) = 0;
  virtual void Download(void* host, const void* device, size_t bytes) = 0;  // after all kernels
};

struct KernelCase {
  const char* name;
  std::string (*run)(CaseDevice& device);  // "", or the first difference from the reference
};

std::span<const KernelCase> KernelCases();

// For kernel_cases_*.cc.
std::string GemmCase(CaseDevice& device);
std::string GemmDeepestCase(CaseDevice& device);
std::string EmbedCase(CaseDevice& device);
std::string ResidualCase(CaseDevice& device);
std::string GatherNormCase(CaseDevice& device);
std::string RotateCase(CaseDevice& device);
std::string SwiGluCase(CaseDevice& device);
std::string EveryGateCase(CaseDevice& device);
std::string LogitsCase(CaseDevice& device);
std::string AttentionCase(CaseDevice& device);
std::string AttentionLongCase(CaseDevice& device);
std::string AttentionExtremesCase(CaseDevice& device);
std::string SampleCase(CaseDevice& device);
std::string SampleExtremesCase(CaseDevice& device);
std::string SampleLargestCase(CaseDevice& device);

}  // namespace fixpoint
