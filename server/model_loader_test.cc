#include "server/model_loader.h"

#include <gtest/gtest.h>

#include "bundle/test_model.h"
#include "engine/cpu_executor.h"

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

}  // namespace
}  // namespace fixpoint
