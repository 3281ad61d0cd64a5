#include "server/model_loader.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "bundle/test_model.h"
#include "engine/cpu_executor.h"
#include "engine/nvidia_device.h"

namespace fixpoint {
namespace {

TEST(ModelLoaderTest, TheKvCacheIsHalfOfTheFreeMemoryWithinBounds) {
  const IntegerModel model = MakeTestModel();
  const int64_t one = KvSequenceBytes(model);
  EXPECT_EQ(AutomaticKvCacheBytes(model, 10, 0), one);
  EXPECT_EQ(AutomaticKvCacheBytes(model, 10, 8 * one), 4 * one);
  EXPECT_EQ(AutomaticKvCacheBytes(model, 10, INT64_MAX), 10 * one);
}

TEST(ModelLoaderTest, ModelsAreNamedAfterTheirFile) {
  EXPECT_EQ(ModelName("/models/smollm2.fixpoint"), "smollm2");
  EXPECT_EQ(ModelName("models/SmolLM2/"), "SmolLM2");
}

TEST(ModelLoaderTest, TensorParallelNeedsGpusAndAPowerOfTwo) {
  EXPECT_TRUE(CheckDevice("cpu", 1).ok());
  EXPECT_EQ(CheckDevice("cpu", 2).message(), "--tensor-parallel 2 needs GPUs: --device cuda:N");
  for (const int degree : {-1, 0, 3, 5, 16}) {
    const absl::Status status = CheckDevice("cuda:0", degree);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(),
              absl::StrCat("--tensor-parallel is ", degree, ", must be 1, 2, 4 or 8"));
  }
  for (const int degree : {1, 2, 4, 8}) {
    EXPECT_EQ(CheckDevice("cuda:1", degree).ok(), BuiltWithCuda()) << degree;
  }
}

}  // namespace
}  // namespace fixpoint
