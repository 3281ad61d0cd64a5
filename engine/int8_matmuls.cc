#include "engine/int8_matmuls.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace fixpoint {
namespace {

constexpr int32_t kPoison = 0x5a5a5a5a;  // what an algorithm that writes nothing leaves

cublasLtMatmulAlgo_t Unpack(const MatmulAlgorithm& algorithm) {
  cublasLtMatmulAlgo_t result = {};
  static_assert(sizeof(result.data) == sizeof(algorithm));
  std::memcpy(result.data, algorithm.data(), sizeof(algorithm));
  return result;
}

MatmulAlgorithm Pack(const cublasLtMatmulAlgo_t& algorithm) {
  MatmulAlgorithm result;
  std::memcpy(result.data(), algorithm.data, sizeof(result));
  return result;
}

// Row-major matrices as cuBLASLt sees them: see CudaMatmul.
CublasLtShape LtShapeOf(const CudaMatmul& m) {
  return {.compute = CUBLAS_COMPUTE_32I,
          .scale = CUDA_R_32I,
          .a_operation = CUBLAS_OP_T,
          .a = {CUDA_R_8I, m.depth, m.outputs, m.weight_stride},
          .b = {CUDA_R_8I, m.depth, m.tokens, m.x_stride},
          .d = {CUDA_R_32I, m.outputs, m.tokens, m.acc_stride},
          .alignment_bytes = kMatmulAlignBytes};
}

// Every value of int8, the same at each start. The generator's low bits are poor.
std::vector<int8_t> RandomBytes(int64_t count) {
  std::vector<int8_t> bytes(static_cast<size_t>(count));
  uint64_t state = 1;
  for (int8_t& b : bytes) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    b = static_cast<int8_t>(state >> 56);
  }
  return bytes;
}

}  // namespace

absl::Status Int8Matmuls::Prepare(absl::Span<const CudaMatmul> matmuls, int32_t* expected,
                                  const std::string& identity, const std::string& cache_path) {
  AlgorithmCache cache(absl::StrCat(identity, ", cuBLASLt ", api_.cublasLtGetVersion()));
  if (!cache_path.empty()) {
    const absl::Status read = cache.Read(cache_path);
    if (!read.ok() && !absl::IsNotFound(read)) {
      log_(absl::StrCat("file of cuBLASLt's algorithms ignored: ", read.message()));
    }
  }
  expected_on_device_ = expected;
  MatmulTuner tuner(*this, cache, log_);
  for (const CudaMatmul& matmul : matmuls) RETURN_IF_ERROR(PrepareOne(matmul, tuner));
  if (!cache_path.empty() && cache.changed()) {
    const absl::Status written = cache.Write(cache_path);
    if (!written.ok()) {
      log_(absl::StrCat("file of cuBLASLt's algorithms not written: ", written.message()));
    }
  }
  return absl::OkStatus();
}

absl::Status Int8Matmuls::PrepareOne(const CudaMatmul& matmul, MatmulTuner& tuner) {
  RETURN_IF_ERROR(ValidateMatmul(matmul));
  RETURN_IF_ERROR(CheckOwnKernelCanDo(matmul));
  if (prepared_.contains(ShapeOf(matmul))) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::optional<MatmulAlgorithm> chosen, tuner.Choose(matmul));
  Prepared& prepared = prepared_[ShapeOf(matmul)];
  if (chosen.has_value()) prepared = {std::move(product_), Unpack(*chosen)};
  product_.reset();
  // Bytes behind a row's end have to be zero again.
  const std::vector<int8_t> zeros(static_cast<size_t>(matmul.tokens * matmul.x_stride));
  return device_.Upload(const_cast<int8_t*>(matmul.x), zeros.data(),
                        static_cast<int64_t>(zeros.size()));
}

absl::Status Int8Matmuls::Begin(const CudaMatmul& matmul) {
  matmul_ = matmul;
  product_.reset();
  absl::StatusOr<std::unique_ptr<CublasLtProduct>> product =
      CublasLtProduct::Create(api_, LtShapeOf(matmul));
  if (!product.ok() && !absl::IsUnimplemented(product.status())) return product.status();
  if (product.ok()) product_ = *std::move(product);
  const std::vector<int8_t> x = RandomBytes(matmul.tokens * matmul.x_stride);
  RETURN_IF_ERROR(
      device_.Upload(const_cast<int8_t*>(matmul.x), x.data(), static_cast<int64_t>(x.size())));
  RETURN_IF_ERROR(RunOwn(matmul, expected_on_device_));
  ASSIGN_OR_RETURN(expected_, Fetch(expected_on_device_));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<MatmulAlgorithm>> Int8Matmuls::Candidates(int most) {
  if (product_ == nullptr) return absl::UnimplementedError("cuBLASLt refuses the shape");
  ASSIGN_OR_RETURN(const std::vector<cublasLtMatmulAlgo_t> found,
                   product_->Candidates(QueueOf(matmul_), most));
  std::vector<MatmulAlgorithm> candidates(found.size());
  std::transform(found.begin(), found.end(), candidates.begin(), Pack);
  return candidates;
}

absl::Status Int8Matmuls::Check(const MatmulAlgorithm& algorithm) {
  if (product_ == nullptr) return absl::UnimplementedError("cuBLASLt refuses the shape");
  RETURN_IF_ERROR(product_->CheckAlgorithm(QueueOf(matmul_), Unpack(algorithm)));
  const std::vector<int32_t> poison(
      static_cast<size_t>((matmul_.tokens - 1) * matmul_.acc_stride + matmul_.outputs), kPoison);
  RETURN_IF_ERROR(
      device_.Upload(matmul_.acc, poison.data(), 4 * static_cast<int64_t>(poison.size())));
  const absl::Status run = RunAlgorithm(*product_, Unpack(algorithm), matmul_);
  // A failed launch may have lost the device: that is the graver error.
  RETURN_IF_ERROR(device_.Synchronize());
  if (!run.ok()) return absl::UnimplementedError(run.message());
  ASSIGN_OR_RETURN(const std::vector<int32_t> actual, Fetch(matmul_.acc));
  const auto [wrong, right] = std::mismatch(actual.begin(), actual.end(), expected_.begin());
  if (wrong == actual.end()) return absl::OkStatus();
  const int64_t at = wrong - actual.begin();
  return absl::DataLossError(absl::StrCat("token ", at / matmul_.outputs, ", output ",
                                          at % matmul_.outputs, " is ", *wrong, " instead of ",
                                          *right));
}

absl::StatusOr<double> Int8Matmuls::Seconds(const MatmulAlgorithm& algorithm) {
  constexpr int kRounds = 5, kRuns = 8;  // runs hide the cost of a launch and of the wait
  const auto run = [&](int times) -> absl::StatusOr<double> {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < times; ++i) {
      RETURN_IF_ERROR(RunAlgorithm(*product_, Unpack(algorithm), matmul_));
    }
    RETURN_IF_ERROR(device_.Synchronize());
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / times;
  };
  RETURN_IF_ERROR(run(1).status());
  std::vector<double> seconds;
  for (int round = 0; round < kRounds; ++round) {
    ASSIGN_OR_RETURN(const double taken, run(kRuns));
    seconds.push_back(taken);
  }
  std::nth_element(seconds.begin(), seconds.begin() + kRounds / 2, seconds.end());
  return seconds[kRounds / 2];
}

std::string Int8Matmuls::Name(const MatmulAlgorithm& algorithm) const {
  const cublasLtMatmulAlgo_t algo = Unpack(algorithm);
  const auto attribute = [&](cublasLtMatmulAlgoConfigAttributes_t which) {
    uint32_t value = 0;
    size_t written = 0;
    const cublasStatus_t status =
        api_.cublasLtMatmulAlgoConfigGetAttribute(&algo, which, &value, sizeof(value), &written);
    return status == CUBLAS_STATUS_SUCCESS ? absl::StrCat(value) : std::string("?");
  };
  return absl::StrCat(attribute(CUBLASLT_ALGO_CONFIG_ID), " (tile ",
                      attribute(CUBLASLT_ALGO_CONFIG_TILE_ID), ", stages ",
                      attribute(CUBLASLT_ALGO_CONFIG_STAGES_ID), ", split-K ",
                      attribute(CUBLASLT_ALGO_CONFIG_SPLITK_NUM), ")");
}

absl::Status Int8Matmuls::Run(const CudaMatmul& matmul) const {
  RETURN_IF_ERROR(ValidateMatmul(matmul));
  const auto found = prepared_.find(ShapeOf(matmul));
  if (found == prepared_.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("int8 product ", Describe(ShapeOf(matmul)), " was not prepared"));
  }
  const Prepared& prepared = found->second;
  if (!prepared.algorithm.has_value()) return RunOwn(matmul, matmul.acc);
  return RunAlgorithm(*prepared.product, *prepared.algorithm, matmul);
}

std::string Int8Matmuls::NameOf(const MatmulShape& shape) const {
  const auto found = prepared_.find(shape);
  if (found == prepared_.end() || !found->second.algorithm.has_value()) return "own kernel";
  return Name(Pack(*found->second.algorithm));
}

CublasLtQueue Int8Matmuls::QueueOf(const CudaMatmul& matmul) const {
  return {.handle = handle_,
          .stream = reinterpret_cast<cudaStream_t>(device_.stream()),
          .workspace = matmul.workspace,
          .workspace_bytes = static_cast<size_t>(matmul.workspace_bytes)};
}

absl::Status Int8Matmuls::RunAlgorithm(const CublasLtProduct& product,
                                       const cublasLtMatmulAlgo_t& algorithm,
                                       const CudaMatmul& m) const {
  const int32_t alpha = 1, beta = 0;
  return product.Run(QueueOf(m), algorithm, &alpha, m.weights, m.x, &beta, m.acc);
}

absl::Status Int8Matmuls::RunOwn(const CudaMatmul& m, int32_t* acc) const {
  return device_.Launched(device_.kernels().gemm({.weights = m.weights,
                                                  .outputs = static_cast<int32_t>(m.outputs),
                                                  .depth = static_cast<int32_t>(m.depth),
                                                  .x = {const_cast<int8_t*>(m.x), nullptr,
                                                        static_cast<size_t>(m.x_stride)},
                                                  .tokens = static_cast<int32_t>(m.tokens),
                                                  .splits = 1,
                                                  .acc = acc,
                                                  .acc_stride = static_cast<size_t>(m.acc_stride),
                                                  .split_stride = 0,
                                                  .plane_stride = 0},
                                                 device_.stream()),
                          "gemm");
}

absl::StatusOr<std::vector<int32_t>> Int8Matmuls::Fetch(const int32_t* acc) const {
  const CudaMatmul& m = matmul_;
  std::vector<int32_t> rows(static_cast<size_t>((m.tokens - 1) * m.acc_stride + m.outputs));
  RETURN_IF_ERROR(device_.Download(rows.data(), acc, 4 * static_cast<int64_t>(rows.size())));
  for (int64_t t = 1; t < m.tokens && m.acc_stride > m.outputs; ++t) {
    std::copy_n(rows.begin() + t * m.acc_stride, m.outputs, rows.begin() + t * m.outputs);
  }
  rows.resize(static_cast<size_t>(m.tokens * m.outputs));
  return rows;
}

}  // namespace fixpoint
