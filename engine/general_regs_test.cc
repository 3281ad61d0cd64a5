// The arithmetic runs without floating-point registers: kernels (reference, portable), forward pass
// and sampler are compiled a second time with -mgeneral-regs-only (engine/CMakeLists.txt), give the
// same golden digest, and their machine code names no vector or x87 register.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "bundle/bundle.h"
#include "bundle/test_model.h"
#include "engine/cpu_executor.h"
#include "engine/golden.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

// Standard output of a shell command that must succeed.
std::string Output(const std::string& command) {
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) {
    ADD_FAILURE() << "cannot run " << command;
    return "";
  }
  std::string output;
  char buffer[4096];
  while (const size_t count = fread(buffer, 1, sizeof(buffer), pipe)) output.append(buffer, count);
  EXPECT_EQ(pclose(pipe), 0) << command;
  return output;
}

std::string IntegerOnlyDigest(const std::string& bundle_path, const std::string& arguments) {
  return std::string(
      absl::StripSuffix(Output(absl::StrCat(FIXPOINT_EMULATOR, " ", FIXPOINT_GOLDEN_INTEGER_ONLY,
                                            " '", bundle_path, "' ", arguments)),
                        "\n"));
}

std::string EngineDigest(Bundle bundle) {
  auto tokenizer = Tokenizer::Create(std::move(bundle.tokenizer));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  auto executor = CpuExecutor::Create(std::move(bundle.model), {});
  EXPECT_TRUE(executor.ok()) << executor.status();
  auto digest = GoldenDigest(**executor, GoldenPrompts(**tokenizer));
  EXPECT_TRUE(digest.ok()) << digest.status();
  return *digest;
}

TEST(GeneralRegsTest, TinyModelsGiveTheSameDigest) {
  const std::string path = absl::StrCat(testing::TempDir(), "/general_regs_test.fixpoint");
  for (const TestModelOptions& options :
       {TestModelOptions{.seed = 1}, TestModelOptions{.seed = 2,
                                     .layers = 3,
                                     .prefix_tokens = 3,
                                     .wide_sites = kWideAll,
                                     .qkv_bias = true,
                                     .qk_hadamard = true,
                                     .down_hadamard_block = 32}}) {
    const auto written = WriteBundle(MakeTestBundle(options), path);
    ASSERT_TRUE(written.ok()) << written.status();
    auto bundle = ReadBundle(path);
    ASSERT_TRUE(bundle.ok()) << bundle.status();
    const std::string expected = EngineDigest(*std::move(bundle));
    EXPECT_EQ(IntegerOnlyDigest(path, "portable"), expected);
    EXPECT_EQ(IntegerOnlyDigest(path, "portable 7"), expected);
    EXPECT_EQ(IntegerOnlyDigest(path, "reference"), expected);
  }
  std::remove(path.c_str());
}

TEST(GeneralRegsTest, TheRealBundleGivesTheSameDigest) {
  const char* path = std::getenv("FIXPOINT_BUNDLE");
  if (path == nullptr) GTEST_SKIP() << "FIXPOINT_BUNDLE does not name a bundle";
  auto bundle = ReadBundle(path);
  ASSERT_TRUE(bundle.ok()) << bundle.status();
  const std::string recorded = bundle->golden_digest;
  const std::string digest = EngineDigest(*std::move(bundle));
  EXPECT_EQ(IntegerOnlyDigest(path, "portable"), digest);
  if (!recorded.empty()) {
    EXPECT_EQ(digest, recorded) << "recorded in the bundle";
  }
}

#ifdef __aarch64__
// One register file under six names; "d0 <" is the address of a branch.
constexpr char kVectorRegister[] = "[[:space:]{[](v[0-9]+[.]|[bhsdq][0-9]+(,|$))";
constexpr char kProduct[] = "mul|madd|maddl";
#else
constexpr char kVectorRegister[] = "%[xyz]mm[0-9]|%st[(, ]|%st$|%mm[0-7]|%tmm[0-7]";
constexpr char kProduct[] = "imul";
#endif

TEST(GeneralRegsTest, MachineCodeNamesNoVectorRegister) {
#if (defined(__x86_64__) || defined(__aarch64__)) && defined(FIXPOINT_OBJDUMP)
  const auto lines_with = [](const std::string& library, const std::string& pattern) {
    return std::stoi(
        Output(absl::StrCat(FIXPOINT_OBJDUMP, " --disassemble --no-show-raw-insn '", library,
                            "' | grep --count --extended-regexp '", pattern, "' || true")));
  };
  EXPECT_EQ(lines_with(FIXPOINT_INTEGER_ONLY_LIBRARY, kVectorRegister), 0);
  EXPECT_GT(lines_with(FIXPOINT_INTEGER_ONLY_LIBRARY, kProduct),
            100);  // it is the arithmetic that was read
  EXPECT_GT(lines_with(FIXPOINT_ENGINE_LIBRARY, kVectorRegister),
            100);  // and the pattern finds what there is
#else
  GTEST_SKIP() << "needs objdump, and x86-64 or aarch64";
#endif
}

}  // namespace
}  // namespace fixpoint
