#include "calibrator/gemm_device.h"

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "calibrator/gemm_cuda.h"

namespace fixpoint {

absl::StatusOr<std::unique_ptr<FloatGemm>> CreateGemm(const std::string& device, ThreadPool& pool) {
  if (device == "cpu") return CreateCpuGemm(pool);
  absl::string_view number = device;
  int index = 0;
  // SimpleAtoi alone would take blanks and signs.
  if (!absl::ConsumePrefix(&number, "cuda:") || number.empty() ||
      !absl::ascii_isdigit(static_cast<unsigned char>(number[0])) ||
      !absl::SimpleAtoi(number, &index)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("device \"%s\" is neither \"cpu\" nor \"cuda:N\" with N from 0", device));
  }
  return CreateCudaGemm(index, CreateCpuGemm(pool));
}

}  // namespace fixpoint
