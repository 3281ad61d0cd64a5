#include "calibrator/import/compressed_tensors_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "calibrator/import/checkpoint.h"
#include "calibrator/import/test_files.h"

namespace fixpoint {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::FloatBytes;
using ::testing::HasSubstr;
using testing::SafetensorsBytes;
using testing::TempDirectory;

constexpr char kScheme[] = R"({"quant_method": "compressed-tensors", "format": "int-quantized",
  "quantization_status": "compressed", "global_compression_ratio": null, "kv_cache_scheme": null,
  "ignore": ["lm_head"], "config_groups": {"group_0": {"targets": ["Linear"], "output_activations": null,
  "weights": {"num_bits": 8, "type": "int", "symmetric": true, "strategy": "channel", "dynamic": false,
              "group_size": null, "observer": "minmax"},
  "input_activations": {"num_bits": 8, "type": "int", "symmetric": true, "strategy": "tensor", "dynamic": false}}}})";

absl::Status Check(const std::string& json) {
  const absl::StatusOr<JsonDocument> document = JsonDocument::Parse(json, "config.json", 16);
  return document.ok() ? CheckCompressedTensorsConfig(document->root()) : document.status();
}

std::string With(absl::string_view from, absl::string_view to) {
  return absl::StrReplaceAll(kScheme, {{from, to}});
}

TEST(CompressedTensorsConfigTest, TakesStaticAndDynamicInt8) {
  EXPECT_TRUE(Check(kScheme).ok()) << Check(kScheme);
  EXPECT_TRUE(Check(With(R"("strategy": "tensor", "dynamic": false)",
                         R"("strategy": "token", "dynamic": true)"))
                  .ok());
  EXPECT_TRUE(Check(With(R"("strategy": "channel")", R"("strategy": "tensor")")).ok());
}

TEST(CompressedTensorsConfigTest, RefusesOtherSchemesByName) {
  const auto refused = [](absl::string_view from, absl::string_view to, const char* key) {
    const absl::Status status = Check(With(from, to));
    EXPECT_THAT(std::string(status.message()), HasSubstr(key)) << to;
    EXPECT_FALSE(status.ok()) << to;
  };
  refused("\"compressed-tensors\"", "\"gptq\"", "quant_method");
  refused("int-quantized", "pack-quantized", "format");
  refused(R"("compressed",)", R"("frozen",)", "quantization_status");
  refused(R"("kv_cache_scheme": null)", R"("kv_cache_scheme": {"num_bits": 8})", "kv_cache_scheme");
  refused(R"("ignore")", R"("transform_config": {"a": 1}, "ignore")", "transform_config");
  refused(R"("num_bits": 8)", R"("num_bits": 4)", "num_bits");
  refused(R"("type": "int")", R"("type": "float")", "type");
  refused(R"("symmetric": true)", R"("symmetric": false)", "symmetric");
  refused(R"("strategy": "channel")", R"("strategy": "group")", "strategy");
  refused(R"("group_size": null)", R"("group_size": 128)", "group_size");
  refused(R"("strategy": "tensor", "dynamic": false)", R"("strategy": "token", "dynamic": false)",
          "static tensor");
  refused(R"("config_groups": {"group_0")", R"("config_groups": {}, "x": {"group_0")",
          "config_groups");
}

class CompressedTensorsTest : public ::testing::Test {
 protected:
  // A file of the given header fields and data.
  const Safetensors& Open(const std::string& header, const std::string& data) {
    absl::StatusOr<Safetensors> file = Safetensors::OpenFile(
        directory_.Write("model.safetensors", SafetensorsBytes(header, data)));
    EXPECT_TRUE(file.ok()) << file.status();
    files_.push_back(std::make_unique<Safetensors>(*std::move(file)));
    return *files_.back();
  }
  void ExpectRefused(const std::string& header, const std::string& data, const std::string& text) {
    const absl::Status status = CompressedTensorsSource::Create(Open(header, data)).status();
    ASSERT_FALSE(status.ok()) << header;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("model.safetensors"), HasSubstr(text)));
  }

  TempDirectory directory_;
  std::vector<std::unique_ptr<Safetensors>> files_;
};

constexpr char kWeight[] = R"("p.weight":{"dtype":"I8","shape":[2,3],"data_offsets":[0,6]})";

TEST_F(CompressedTensorsTest, WeightsAreIntegersTimesTheirRowsScale) {
  const std::string header = absl::StrCat(
      "{", kWeight, R"(,"p.weight_scale":{"dtype":"F32","shape":[2,1],"data_offsets":[6,14]},)",
      R"("p.input_scale":{"dtype":"F32","shape":[1],"data_offsets":[14,18]},)",
      R"("norm":{"dtype":"F32","shape":[1],"data_offsets":[18,22]}})");
  const std::string data = std::string("\x80\x01\x7f\xff\x00\x03", 6) + FloatBytes({0.3f, 1.7f}) +
                           FloatBytes({0.25f}) + FloatBytes({9});
  const absl::StatusOr<CompressedTensorsSource> source =
      CompressedTensorsSource::Create(Open(header, data));
  ASSERT_TRUE(source.ok()) << source.status();
  ASSERT_EQ(source->tensors().size(), 2u);
  EXPECT_EQ(source->tensors()[0].name, "p.weight");
  EXPECT_EQ(source->tensors()[1].name, "norm");
  std::vector<float> values(6);
  ASSERT_TRUE(source->Read(0, absl::MakeSpan(values)).ok());
  EXPECT_THAT(values, ElementsAre(-128 * 0.3f, 0.3f, 127 * 0.3f, -1 * 1.7f, 0.0f, 3 * 1.7f));
  std::vector<float> norm(1);
  ASSERT_TRUE(source->Read(1, absl::MakeSpan(norm)).ok());
  EXPECT_EQ(norm[0], 9);
  ASSERT_EQ(source->input_scales().size(), 1u);
  EXPECT_EQ(source->input_scales().at("p"), 0.25f);
}

TEST_F(CompressedTensorsTest, OneScaleForAllRows) {
  const std::string header = absl::StrCat(
      "{", kWeight, R"(,"p.weight_scale":{"dtype":"F32","shape":[1],"data_offsets":[6,10]}})");
  const absl::StatusOr<CompressedTensorsSource> source = CompressedTensorsSource::Create(
      Open(header, std::string("\x01\x02\x03\x04\x05\x06", 6) + FloatBytes({0.5f})));
  ASSERT_TRUE(source.ok()) << source.status();
  std::vector<float> values(6);
  ASSERT_TRUE(source->Read(0, absl::MakeSpan(values)).ok());
  EXPECT_THAT(values, ElementsAre(0.5f, 1, 1.5f, 2, 2.5f, 3));
}

TEST_F(CompressedTensorsTest, WhatDoesNotBelongTogetherIsNamed) {
  const std::string six(6, '\1');
  ExpectRefused(absl::StrCat("{", kWeight, "}"), six, "p.weight: int8 weights without");
  const auto scale = [](const char* name, const char* shape, int bytes) {
    return absl::StrCat("{", kWeight, ",\"", name, R"(":{"dtype":"F32","shape":)", shape,
                        R"(,"data_offsets":[6,)", 6 + bytes, "]}}");
  };
  ExpectRefused(scale("p.weight_scale", "[3]", 12), six + FloatBytes({1, 1, 1}), "[3]");
  ExpectRefused(scale("p.weight_scale", "[2,1]", 8), six + FloatBytes({1, 0}), "scale 1 is 0");
  ExpectRefused(scale("p.weight_scale", "[2,1]", 8), six + FloatBytes({1, NAN}), "nan");
  ExpectRefused(scale("p.weight_zero_point", "[2]", 8), six + FloatBytes({1, 1}), "zero points");
  ExpectRefused(scale("p.input_scale", "[2]", 8), six + FloatBytes({1, 1}), "p.input_scale");
  ExpectRefused(R"({"p.weight_scale":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                FloatBytes({1}), "a scale without int8 weights");
}

TEST(CompressedTensorsImportTest, UnknownMethodsAreRefusedWithTheFile) {
  const TempDirectory directory;
  const FloatModel model = testing::TinyModel(/*tied=*/false, /*biases=*/false);
  testing::WriteHuggingFace(directory, model);
  std::string config = testing::HuggingFaceConfig(model);
  config.insert(config.find('{') + 1, R"("quantization_config": {"quant_method": "awq"},)");
  directory.Write("config.json", config);
  const absl::StatusOr<Checkpoint> checkpoint = ImportCheckpoint(directory.path(), nullptr);
  ASSERT_FALSE(checkpoint.ok());
  EXPECT_THAT(std::string(checkpoint.status().message()),
              AllOf(HasSubstr("config.json"), HasSubstr("quant_method"), HasSubstr("awq")));
}

}  // namespace
}  // namespace fixpoint
