// An IntegerModel in the memory of a device.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "bundle/model.h"
#include "engine/cuda_device.h"
#include "engine/models/llama.h"

namespace fixpoint {

// A LlamaModel whose pointers are the device's. Of `ops` nothing is set; `packed` are row-major
// weights, outputs and depth are those of the padded matrix: outputs a multiple of
// kGemmOutputStep, depth of kGemmDepthStep, with zeros in what was added.
struct CudaModel {
  LlamaModel llama;
  std::vector<LlamaLayer> layers;  // on the host; their pointers are the device's
};

// Bytes that UploadModel needs.
int64_t CudaModelBytes(const IntegerModel& model);

// Copies the model to zeroed memory of the device (CudaModelBytes, aligned to 256) and frees the
// weights of the original behind each copy. Errors are the device's.
absl::Status UploadModel(IntegerModel& model, CudaDevice& device, int8_t* memory,
                         CudaModel* result);

}  // namespace fixpoint
