#include "calibrator/corpus.h"

#include <filesystem>
#include <fstream>

#include "bundle/test_model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

class CorpusTest : public testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& text) {
    const std::string path = testing::TempDir() + "/corpus_test_" + name;
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }

  static std::string Lines(int64_t bytes) {
    std::string text;
    for (int64_t i = 0; static_cast<int64_t>(text.size()) < bytes; ++i)
      text += "line " + std::to_string(i) + " says hé\n";
    return text;
  }

  std::unique_ptr<Tokenizer> tokenizer_ = *Tokenizer::Create(MakeTestTokenizer());
  CorpusLimits limits_{.max_train = 10, .max_held_out = 3};
};

TEST_F(CorpusTest, TakesWindowsEvenlyAndHoldsSomeOut) {
  const std::string path = Write("even", Lines(200000));
  const absl::StatusOr<Corpus> corpus = ReadCorpus({path}, *tokenizer_, limits_);
  ASSERT_TRUE(corpus.ok()) << corpus.status();
  EXPECT_EQ(corpus->train.count(), 10);
  EXPECT_EQ(corpus->held_out.count(), 3);
  EXPECT_EQ(corpus->train.tokens, kCorpusWindowTokens);
  EXPECT_EQ(corpus->digest.size(), 64u);
  // Windows from the start and from near the end: numbers of lines grow.
  const auto text = [&](const Windows& w, int32_t i) {
    return tokenizer_->Decode({w.window(i), w.window(i) + w.tokens}, false);
  };
  EXPECT_THAT(text(corpus->train, 0), testing::HasSubstr("line 0 "));
  EXPECT_THAT(text(corpus->train, 9), testing::Not(testing::HasSubstr("line 5")));
}

TEST_F(CorpusTest, HugeFilesAreReadInPieces) {
  const std::string path = Write("huge", Lines(20 << 20));
  const absl::StatusOr<Corpus> corpus = ReadCorpus({path, path}, *tokenizer_, limits_);
  ASSERT_TRUE(corpus.ok()) << corpus.status();  // pieces are cut between code points
  EXPECT_EQ(corpus->train.count(), 10);
  std::filesystem::remove(path);
}

TEST_F(CorpusTest, SaysWhatIsWrongWithAFile) {
  EXPECT_EQ(ReadCorpus({"/nonexistent/x"}, *tokenizer_, limits_).status().code(),
            absl::StatusCode::kNotFound);
  const auto message = [&](const std::string& path) {
    return std::string(ReadCorpus({path}, *tokenizer_, limits_).status().message());
  };
  EXPECT_THAT(message(Write("empty", "")), testing::HasSubstr("is empty"));
  EXPECT_THAT(message(Write("short", "only a few words")),
              testing::AllOf(testing::HasSubstr("tokens"), testing::HasSubstr("2048")));
  EXPECT_THAT(message(Write("binary", Lines(10000) + "\xff\xfe" + Lines(10000))),
              testing::HasSubstr("not UTF-8"));
}

TEST_F(CorpusTest, Utf8ErrorsNameTheByte) {
  EXPECT_TRUE(CheckUtf8("naïve", "x").ok());
  EXPECT_THAT(std::string(CheckUtf8("na\xc3\xafve\xff", "x").message()),
              testing::HasSubstr("byte 6 "));
}

TEST_F(CorpusTest, CutWindowsDropsTheRestAndHonoursTheLimit) {
  const std::vector<int32_t> ids(100, 7);
  EXPECT_EQ(CutWindows(ids, 30, 0).count(), 3);
  EXPECT_EQ(CutWindows(ids, 30, 2).count(), 2);
  EXPECT_EQ(CutWindows(ids, 101, 0).count(), 0);
}

}  // namespace
}  // namespace fixpoint
