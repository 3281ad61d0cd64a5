#include "calibrator/export/exporter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>

#include "bundle/test_model.h"
#include "calibrator/export/compressed_tensors.h"
#include "calibrator/export/tokenizer_files.h"
#include "calibrator/import/checkpoint.h"
#include "calibrator/import/safetensors_reader.h"
#include "calibrator/import/test_files.h"
#include "calibrator/pipeline.h"
#include "calibrator/test_float_model.h"

namespace fixpoint {
namespace {

namespace fs = std::filesystem;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TempDirectory;

// A Hugging Face directory and a bundle made of it, once for all tests.
class ExporterTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared_ = new TempDirectory;
    const std::string source = shared_->path() + "/source";
    fs::create_directory(source);
    const FloatModel model = Model();
    const TokenizerSpec tokens = Tokens();
    std::ofstream(source + "/config.json") << testing::HuggingFaceConfig(model);
    std::ofstream(source + "/tokenizer.json") << *WriteTokenizerJson(tokens);
    std::ofstream(source + "/tokenizer_config.json") << WriteTokenizerConfig(tokens, "", 1024);
    std::ofstream(source + "/LICENSE") << "all yours";
    std::ofstream(source + "/model.safetensors")
        << testing::SafetensorsFile(testing::HuggingFaceTensors(model));
    const absl::StatusOr<Checkpoint> checkpoint = ImportCheckpoint(source, nullptr);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    CalibrationSettings settings;
    settings.training.steps = 4;
    settings.training.judge_every = 2;
    settings.training.warmup_steps = 1;
    settings.prefix_search = false;
    settings.own_windows = {.max_train = 4, .max_held_out = 2};
    settings.sites.candidates = 2;
    ThreadPool pool(2);
    StopSignal stop;
    const std::unique_ptr<Progress> progress =
        CreateProgress(ProgressKind::kNone, CalibrationStages(settings));
    const absl::StatusOr<CalibrationResult> result =
        Calibrate(*checkpoint, "source", settings, pool, *progress, 0, stop);
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_TRUE(WriteBundle(result->bundle, shared_->path() + "/x.fixpoint").ok());
  }
  static void TearDownTestSuite() {
    delete shared_;
    shared_ = nullptr;
  }
  void SetUp() override { ASSERT_TRUE(fs::exists(shared_->path() + "/x.fixpoint")); }

  // Two channels of one down_proj's input are far larger than the others: the block Hadamard of the
  // bundle spreads them, the export has to live with them.
  static FloatModel Model() {
    FloatModel model = MakeTestFloatModel({.seed = 5, .tied = false});
    FloatLayer& layer = model.layers[1];
    for (int64_t channel : {3, 40}) {
      for (int64_t c = 0; c < layer.gate_proj.cols; ++c) {
        layer.gate_proj.row(channel)[c] *= 7;
        layer.up_proj.row(channel)[c] *= 7;
      }
      for (int64_t r = 0; r < layer.down_proj.rows; ++r) layer.down_proj.row(r)[channel] /= 7;
    }
    return model;
  }

  static TokenizerSpec Tokens() {
    TokenizerSpec spec = MakeTestTokenizer(300);
    spec.bos_id = 298;
    return spec;
  }

  ExportSettings Settings() const {
    return {.bundle = shared_->path() + "/x.fixpoint",
            .source = shared_->path() + "/source",
            .output = directory_.path() + "/out",
            .own_windows = {.max_train = 4, .max_held_out = 2}};
  }
  absl::StatusOr<ExportResult> Export(const ExportSettings& settings) {
    ThreadPool pool(2);
    const std::unique_ptr<Progress> progress = CreateProgress(ProgressKind::kNone, ExportStages());
    return ExportCompressedTensors(settings, pool, *progress);
  }
  std::vector<std::string> Names(const std::string& path) const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(path))
      names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }

  static TempDirectory* shared_;
  TempDirectory directory_;
};
TempDirectory* ExporterTest::shared_ = nullptr;

TEST_F(ExporterTest, OurImporterReadsIntegersAndScalesBack) {
  ExportSettings settings = Settings();
  settings.ignore = IgnorePolicy::kNone;
  const absl::StatusOr<ExportResult> result = Export(settings);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(Names(directory_.path()), ElementsAre("out"));
  EXPECT_THAT(Names(settings.output),
              ElementsAre("LICENSE", "README.md", "config.json", "generation_config.json",
                          "model.safetensors", "tokenizer.json", "tokenizer_config.json"));
  EXPECT_EQ(result->int8_share, 1);
  EXPECT_THAT(result->ignored, ElementsAre("lm_head"));
  // The two large channels cost it a lot; it is the same model nevertheless.
  EXPECT_GT(result->figures.kl_mean, 0.05);
  EXPECT_LT(result->figures.kl_mean, 0.3);
  EXPECT_GT(result->figures.top1_agreement, 0.5);
  EXPECT_EQ(result->source_perplexity, result->figures.float_perplexity);

  const absl::StatusOr<Checkpoint> back = ImportCheckpoint(settings.output, nullptr);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->source_types, "I8, BF16");
  EXPECT_EQ(back->input_scales.size(), 14u);
  const auto scale = [&](const char* name) { return back->input_scales.at(name); };
  EXPECT_EQ(scale("model.layers.1.self_attn.q_proj"), scale("model.layers.1.self_attn.k_proj"));
  EXPECT_EQ(scale("model.layers.1.self_attn.q_proj"), scale("model.layers.1.self_attn.v_proj"));
  EXPECT_EQ(scale("model.layers.0.mlp.gate_proj"), scale("model.layers.0.mlp.up_proj"));
  EXPECT_NE(scale("model.layers.0.mlp.gate_proj"), scale("model.layers.0.mlp.down_proj"));

  // What is in the file is what was rounded, bit for bit, and the importer multiplies it out.
  const absl::StatusOr<Safetensors> file =
      Safetensors::OpenFile(settings.output + "/model.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  const auto find = [&](const std::string& name) {
    for (size_t i = 0; i < file->tensors().size(); ++i)
      if (file->tensors()[i].name == name) return i;
    ADD_FAILURE() << name;
    return size_t{0};
  };
  for (int32_t layer = 0; layer < 2; ++layer) {
    for (const ExportLinear& linear : kExportLinearList) {
      const std::string name = LinearName(layer, linear);
      const Matrix& w = back->model.layers[layer].*linear.weights;
      std::vector<int8_t> q(w.data.size());
      std::vector<float> steps(static_cast<size_t>(w.rows));
      ASSERT_EQ(file->tensors()[find(name + ".weight")].type, "I8");
      EXPECT_THAT(file->tensors()[find(name + ".weight_scale")].shape, ElementsAre(w.rows, 1));
      ASSERT_TRUE(file->ReadInt8(find(name + ".weight"), 0, absl::MakeSpan(q)).ok());
      ASSERT_TRUE(file->Read(find(name + ".weight_scale"), absl::MakeSpan(steps)).ok());
      for (size_t i = 0; i < q.size(); ++i)
        ASSERT_EQ(w.data[i], static_cast<float>(q[i]) * steps[i / w.cols]) << name << " " << i;
    }
  }
  // The weights are those of the float model, turned: logits are close.
  const FloatModel source = Model();
  const std::vector<int32_t> ids = {298, 70, 101, 40};
  const std::vector<double> expected = NaiveLogits(source, ids),
                            logits = NaiveLogits(back->model, ids);
  double sum = 0;
  for (size_t i = 0; i < logits.size(); ++i) sum += std::abs(logits[i] - expected[i]);
  EXPECT_LT(sum / static_cast<double>(logits.size()), 0.15);
}

TEST_F(ExporterTest, AutoKeepsCostlySitesInBf16) {
  ExportSettings settings = Settings();
  settings.budget = 1e-9;
  EXPECT_EQ(Export(settings).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(Names(directory_.path()).empty());
  settings.budget = 0.05;
  absl::StatusOr<ExportResult> result = Export(settings);
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->chosen.size(), 1u);
  EXPECT_EQ(result->chosen[0].layer, 1);
  EXPECT_EQ(result->chosen[0].site, LayerSite::kDownIn);
  EXPECT_LT(result->int8_share, 1);
  EXPECT_LT(result->figures.kl_mean, result->all_quantized.kl_mean);
  EXPECT_LE(result->figures.kl_mean, KlTarget(settings.budget));
  const absl::StatusOr<Checkpoint> back = ImportCheckpoint(settings.output, nullptr);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->input_scales.size() + result->ignored.size(), 15u);  // 14 linears and lm_head
  EXPECT_THAT(result->not_carried, Contains(HasSubstr("kept in bf16")));
}

TEST_F(ExporterTest, AFullDiskAndAFullFolderLeaveNothingHalfWritten) {
  ExportSettings settings = Settings();
  settings.ignore = IgnorePolicy::kNone;
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = old;
  small.rlim_cur = 100 << 10;  // configuration and tokenizer fit, the weights do not
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const absl::Status full = Export(settings).status();
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_THAT(std::string(full.message()), HasSubstr("model.safetensors"));
  EXPECT_TRUE(Names(directory_.path()).empty());

  fs::create_directory(settings.output);
  std::ofstream(settings.output + "/mine") << "x";
  EXPECT_EQ(Export(settings).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(Names(settings.output), ElementsAre("mine"));
}

TEST_F(ExporterTest, AnotherSourceIsRefused) {
  const std::string other = directory_.path() + "/other";
  fs::copy(shared_->path() + "/source", other);
  std::ofstream(other + "/generation_config.json") << "{}";
  ExportSettings settings = Settings();
  settings.source = other;
  EXPECT_THAT(std::string(Export(settings).status().message()), HasSubstr("is not the source"));
}

}  // namespace
}  // namespace fixpoint
