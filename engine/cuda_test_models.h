// What the tests of CudaExecutor share: small models, as the emulator is slow, and the CPU's
// executor to compare with.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "bundle/test_model.h"
#include "engine/cpu_executor.h"
#include "engine/cuda_executor.h"
#include "engine/emulated_device.h"
#include "engine/golden.h"
#include "gtest/gtest.h"
#include "kernels/cpu/dispatch.h"

namespace fixpoint {

inline constexpr int32_t kContext = 200;
inline constexpr CudaExecutorOptions kOptions = {.kv_cache_bytes = 1 << 20,
                                                 .max_step_tokens = 100,
                                                 .max_step_logits = 100,
                                                 .decode_bytes = 1 << 20};

inline std::unique_ptr<CudaExecutor> MakeCuda(const TestModelOptions& model,
                                              EmulatedDeviceState* state,
                                              const CudaExecutorOptions& options = kOptions) {
  auto executor =
      CudaExecutor::Create(MakeTestModel(model), std::make_unique<EmulatedDevice>(state), options);
  EXPECT_TRUE(executor.ok()) << executor.status();
  return std::move(executor).value();
}

inline std::unique_ptr<CpuExecutor> MakeCpu(IntegerModel model) {
  auto executor = CpuExecutor::Create(std::move(model), {.threads = 1,
                                                         .kv_cache_bytes = 1 << 20,
                                                         .max_step_tokens = 100,
                                                         .max_step_logits = 100,
                                                         .ops = FindOps("reference")});
  EXPECT_TRUE(executor.ok()) << executor.status();
  return std::move(executor).value();
}

inline std::unique_ptr<CpuExecutor> MakeCpu(const TestModelOptions& model) {
  return MakeCpu(MakeTestModel(model));
}

inline std::vector<std::vector<int32_t>> Prompts() {
  auto tokenizer = Tokenizer::Create(MakeTestTokenizer());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return GoldenPrompts(**tokenizer);
}

inline const TestModelOptions kPlain = {.context = kContext};
// Nothing is a multiple of what the kernels pad to, and every option is on.
inline const TestModelOptions kOdd = {.seed = 3,
                                      .layers = 2,
                                      .hidden = 72,
                                      .heads = 6,
                                      .kv_heads = 2,
                                      .head_dim = 16,
                                      .intermediate = 104,
                                      .vocab = 301,
                                      .context = kContext,
                                      .prefix_tokens = 3,
                                      .wide_sites = kWideAttnNorm | kWideDownIn,
                                      .odd_layer_wide_sites = kWideAll,
                                      .qkv_bias = true,
                                      .qk_hadamard = true,
                                      .down_hadamard_block = 8};

}  // namespace fixpoint
