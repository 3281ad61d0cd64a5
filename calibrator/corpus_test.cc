#include "calibrator/corpus.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "bundle/test_model.h"
#include "calibrator/progress.h"
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

TEST_F(CorpusTest, GigabytesNeedNoMoreMemoryThanMegabytes) {
  const std::string path = Write("gigabytes", "");
  {
    const std::string block = Lines(1 << 20);
    std::ofstream out(path, std::ios::binary);
    for (int i = 0; i < 256; ++i) out << block;
    ASSERT_TRUE(out.flush().good()) << "no room for 256 MiB";
  }
  const std::vector<std::string> three_gigabytes(12, path);
  // 8 MiB of text as ids, twice while a vector grows, is 64 MiB at most; one file read whole would
  // be 256 MiB.
  const int64_t bound = PeakMemoryBytes() + (96 << 20);
  const absl::StatusOr<Corpus> corpus = ReadCorpus(three_gigabytes, *tokenizer_, limits_);
  ASSERT_TRUE(corpus.ok()) << corpus.status();
  EXPECT_LT(PeakMemoryBytes(), bound);
  const auto windows = ReadTextWindows(path, *tokenizer_, {.tokens = 100, .limit = 50});
  ASSERT_TRUE(windows.ok()) << windows.status();
  EXPECT_EQ(windows->count(), 50);
  EXPECT_LT(PeakMemoryBytes(), bound);
  std::filesystem::remove(path);
}

TEST_F(CorpusTest, SaysWhatIsWrongWithAFile) {
  // Both readers refuse alike.
  const auto message = [&](const std::string& path) {
    const absl::Status corpus = ReadCorpus({path}, *tokenizer_, limits_).status();
    const absl::Status windows = ReadTextWindows(path, *tokenizer_, {.tokens = 100}).status();
    EXPECT_EQ(corpus, windows);
    EXPECT_THAT(std::string(corpus.message()), testing::HasSubstr(path));
    return std::string(corpus.message());
  };
  using testing::HasSubstr;
  EXPECT_THAT(message(testing::TempDir() + "/corpus_test_missing"), HasSubstr("No such file"));
  EXPECT_THAT(message(testing::TempDir()), HasSubstr("a directory"));
  EXPECT_THAT(message(Write("empty", "")), HasSubstr("the file is empty"));
  const std::string lines = Lines(10000);
  EXPECT_THAT(message(Write("binary", lines + "\xff\xfe" + lines)),
              HasSubstr("not UTF-8 text (byte " + std::to_string(lines.size()) + " is 0xff)"));
  EXPECT_THAT(message(Write("zeros", lines + std::string(1, '\0') + lines)),
              HasSubstr("byte " + std::to_string(lines.size()) + " is NUL"));
  // A code point that the end of the file cuts.
  EXPECT_THAT(message(Write("cut", lines + "h\xc3")),
              HasSubstr("byte " + std::to_string(lines.size() + 1) + " is 0xc3"));
}

TEST_F(CorpusTest, SaysWhatIsWrongInThePiecesOfAHugeFile) {
  const std::string zeros = Write("sparse", "x");
  std::filesystem::resize_file(zeros, uint64_t{3} << 30);  // holes, which read as NUL
  EXPECT_THAT(std::string(ReadCorpus({zeros}, *tokenizer_, limits_).status().message()),
              testing::HasSubstr("is NUL"));
  const absl::Status status =
      ReadTextWindows(zeros, *tokenizer_, {.tokens = 100, .limit = 2}).status();
  // The middle of the first half, less half of a piece of 64 KiB.
  EXPECT_THAT(std::string(status.message()),
              testing::HasSubstr("byte " + std::to_string((3 << 28) - (32 << 10)) + " is NUL"));
  std::filesystem::remove(zeros);
  // Continuation bytes alone are no text, wherever a piece starts.
  const std::string bytes = Write("continuations", std::string(9 << 20, '\x80'));
  EXPECT_THAT(std::string(ReadCorpus({bytes}, *tokenizer_, limits_).status().message()),
              testing::HasSubstr("is 0x80"));
  std::filesystem::remove(bytes);
}

TEST_F(CorpusTest, AFileThatMayNotBeReadIsNamed) {
  const std::string path = Write("secret", Lines(1000));
  std::filesystem::permissions(path, std::filesystem::perms::none);
  const uid_t user = geteuid();
  const uid_t nobody = 65534;
  if (user == 0 && seteuid(nobody) != 0) GTEST_SKIP() << "root reads everything here";
  const absl::Status status = ReadCorpus({path}, *tokenizer_, limits_).status();
  ASSERT_EQ(seteuid(user), 0);
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr(path));
  std::filesystem::remove(path);
}

TEST_F(CorpusTest, ATextThatIsTooShortSaysHowManyTokensItHas) {
  const std::string path = Write("short", "only a few words");
  const size_t tokens = tokenizer_->Encode("only a few words", false).size();
  const std::string found = std::to_string(tokens) + " tokens";
  EXPECT_THAT(
      std::string(ReadCorpus({path}, *tokenizer_, limits_).status().message()),
      testing::AllOf(testing::HasSubstr("short"), testing::HasSubstr(found),
                     testing::HasSubstr("at least 2048"), testing::HasSubstr("4 windows of 512")));
  const std::string others =
      std::string(ReadCorpus({path, path}, *tokenizer_, limits_).status().message());
  EXPECT_THAT(others, testing::HasSubstr("and 1 more"));
}

TEST_F(CorpusTest, AShortTextIsOneShortWindow) {
  const std::string path = Write("two", "a b");
  const int32_t tokens = static_cast<int32_t>(tokenizer_->Encode("a b", false).size());
  ASSERT_GE(tokens, 2);
  const auto windows = ReadTextWindows(path, *tokenizer_, {.tokens = 100, .stride = 50});
  ASSERT_TRUE(windows.ok()) << windows.status();
  EXPECT_EQ(windows->count(), 1);
  EXPECT_EQ(windows->tokens, tokens);
  const absl::Status one =
      ReadTextWindows(Write("one", "a"), *tokenizer_, {.tokens = 100}).status();
  EXPECT_EQ(one.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(one.message()),
              testing::AllOf(testing::HasSubstr("1 tokens"), testing::HasSubstr("at least 2")));
}

TEST_F(CorpusTest, LimitedWindowsSpreadOverSmallAndHugeTexts) {
  for (const int64_t bytes : {int64_t{200} << 10, int64_t{20} << 20}) {
    const std::string path = Write("spread", Lines(bytes));
    const auto windows = ReadTextWindows(path, *tokenizer_, {.tokens = 200, .limit = 4});
    ASSERT_TRUE(windows.ok()) << windows.status();
    ASSERT_EQ(windows->count(), 4);
    std::vector<int64_t> lines;  // the number of the first whole line of each window
    for (int32_t i = 0; i < 4; ++i) {
      const std::string text =
          tokenizer_->Decode({windows->window(i), windows->window(i) + 200}, false);
      lines.push_back(std::stoll(text.substr(text.find("line ") + 5)));
    }
    // A quarter of the text, about 21 bytes a line, lies between two of them.
    const double quarter = static_cast<double>(bytes) / 4 / 21;
    for (int32_t i = 1; i < 4; ++i)
      EXPECT_NEAR(static_cast<double>(lines[i] - lines[i - 1]), quarter, 0.2 * quarter);
    std::filesystem::remove(path);
  }
}

TEST_F(CorpusTest, TooMuchToMeasureAtOnceIsRefused) {
  const std::string path = Write("too_long", "x");
  std::filesystem::resize_file(path, (64 << 20) + 1);
  const absl::Status whole = ReadTextWindows(path, *tokenizer_, {.tokens = 100}).status();
  EXPECT_EQ(whole.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(whole.message()), testing::HasSubstr("--limit"));
  std::filesystem::remove(path);
  // A stride of one makes a window of every token.
  const absl::Status windows =
      ReadTextWindows(Write("dense", Lines(1 << 20)), *tokenizer_, {.tokens = 512, .stride = 1})
          .status();
  EXPECT_EQ(windows.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(windows.message()), testing::HasSubstr("32768"));
}

TEST_F(CorpusTest, PipesAreReadWhole) {
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  const std::string text = Lines(2000);
  ASSERT_EQ(write(fds[1], text.data(), text.size()), static_cast<ssize_t>(text.size()));
  close(fds[1]);
  const auto windows =
      ReadTextWindows("/dev/fd/" + std::to_string(fds[0]), *tokenizer_, {.tokens = 50});
  close(fds[0]);
  ASSERT_TRUE(windows.ok()) << windows.status();
  EXPECT_GT(windows->count(), 1);
}

TEST_F(CorpusTest, Utf8ErrorsNameTheByte) {
  EXPECT_TRUE(CheckUtf8("naïve", "x").ok());
  EXPECT_THAT(std::string(CheckUtf8("na\xc3\xafve\xff", "x").message()),
              testing::HasSubstr("byte 6 "));
}

TEST_F(CorpusTest, CutWindowsDropsTheRestAndHonoursTheLimit) {
  std::vector<int32_t> ids(100);
  for (int32_t i = 0; i < 100; ++i) ids[i] = i;
  EXPECT_EQ(CutWindows(ids, 30, 0).count(), 3);
  EXPECT_EQ(CutWindows(ids, 101, 0).count(), 0);
  const Windows two = CutWindows(ids, 25, 2);  // of four, evenly
  ASSERT_EQ(two.count(), 2);
  EXPECT_EQ(two.window(0)[0], 0);
  EXPECT_EQ(two.window(1)[0], 50);
}

TEST_F(CorpusTest, SlidingWindowsCountEveryTokenOnce) {
  std::vector<int32_t> ids(100);
  for (int32_t i = 0; i < 100; ++i) ids[i] = i;
  const Windows windows = CutWindows(ids, 40, 0, 15);  // start at 0, 15, 30, 45, 60
  ASSERT_EQ(windows.count(), 5);
  std::vector<int32_t> counted;
  for (int32_t i = 0; i < windows.count(); ++i) {
    for (int32_t t = windows.first_scored(i); t < windows.tokens; ++t)
      counted.push_back(windows.window(i)[t]);
  }
  EXPECT_THAT(counted, testing::ElementsAreArray(ids));
  EXPECT_THAT(windows.PredictionCounts(), testing::ElementsAre(39, 15, 15, 15, 15));
  EXPECT_THAT(CutWindows(ids, 50, 0, 50).PredictionCounts(), testing::ElementsAre(49, 49));
}

}  // namespace
}  // namespace fixpoint
