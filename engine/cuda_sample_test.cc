// Tokens chosen on the device are those of engine/sampler.cc, in the kernel alone and in steps of a
// whole model, replayed as graphs or not; and only the logits that are wanted are copied.
#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "engine/cuda_test_models.h"
#include "engine/philox.h"
#include "engine/sampler.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using testing::HasSubstr;

class Draws {
 public:
  explicit Draws(uint32_t seed) : random_(seed) {}
  uint32_t Below(uint32_t bound) { return random_() % bound; }
  // One of the whole range, with its ends.
  uint32_t Extreme(uint32_t low, uint32_t high) {
    const uint32_t pick = Below(8);
    return pick == 0 ? low : pick == 1 ? high : low + Below(high - low + 1);
  }

  SamplingParams Params(int32_t vocab) {
    SamplingParams params;
    if (Below(5) == 0) return params;
    params.inverse_temperature_q16 = 1 + (static_cast<uint32_t>(random_()) >> Below(32));
    if (Below(2) == 0) params.top_k = static_cast<int32_t>(Extreme(1, vocab));
    if (Below(2) == 0) params.top_p_q16 = Extreme(1, 65536);
    if (Below(3) == 0) params.min_p_q16 = Extreme(0, 65536);
    params.seed = uint64_t{random_()} << 32 | random_();
    return params;
  }

 private:
  std::mt19937 random_;
};

int32_t OnCpu(const int32_t* logits, int32_t vocab, int32_t fraction_bits,
              const SamplingParams& params, uint64_t position) {
  std::vector<uint32_t> weights(static_cast<size_t>(vocab));
  std::vector<SampleCandidate> candidates(static_cast<size_t>(vocab));
  return SampleToken(logits, vocab, fraction_bits, params, position,
                     {weights.data(), candidates.data()});
}

TEST(CudaSampleTest, KernelChoosesTheTokensOfTheSampler) {
  Draws draws(1);
  for (int round = 0; round < 150; ++round) {
    const auto vocab = static_cast<int32_t>(1 + draws.Below(round % 10 == 0 ? 20000 : 700));
    const auto fraction_bits = static_cast<int32_t>(draws.Below(kMaxLogitFractionBits + 1));
    const uint32_t different = 1 + draws.Below(draws.Below(2) == 0 ? 20 : 1000000);
    const uint32_t shift = draws.Below(11);
    std::vector<int32_t> logits(static_cast<size_t>(vocab));
    for (int32_t& logit : logits) {
      logit = (static_cast<int32_t>(draws.Below(2 * different)) - static_cast<int32_t>(different))
              << shift;
    }
    const SamplingParams params = draws.Params(vocab);
    const uint64_t position = draws.Below(100000);
    CudaSampleRow choice = {.kind = SampleKind::kGreedy};
    if (params.inverse_temperature_q16 > 0) {
      choice = {SampleKind::kDraw,
                params.top_k,
                params.top_p_q16,
                params.min_p_q16,
                MakeExpScale(params.inverse_temperature_q16, fraction_bits),
                TokenRandomBits(params.seed, position)};
    }
    int32_t token = -2;
    ASSERT_EQ(EmulatedKernels().sample({logits.data(), 1, vocab, &choice, &token}, nullptr), 0);
    ASSERT_EQ(token, OnCpu(logits.data(), vocab, fraction_bits, params, position)) << round;
  }
}

// A step on both executors: chunks of one sequence each, rows whose token the device chooses and
// rows whose logits are wanted.
class ChoosingSteps {
 public:
  ChoosingSteps(CpuExecutor& cpu, CudaExecutor& cuda, EmulatedDeviceState& state)
      : cpu_(cpu), cuda_(cuda), state_(state), vocab_(cuda.limits().vocab_size) {}

  struct Part {
    std::vector<int32_t> ids, rows, table;
    std::vector<SamplingParams> sampling;
    std::vector<RowChoice> choices;
    int32_t position = 0;
  };

  // Appends tokens to a sequence and wants the last rows. Of each row one in `logits_in` wants its
  // logits; 0: none.
  void Add(int32_t sequence, int32_t tokens, int32_t rows, uint32_t logits_in) {
    auto part = std::make_unique<Part>();
    part->position = lengths_[sequence];
    lengths_[sequence] += tokens;
    part->table = {2 * sequence + 1, 2 * sequence, 40 + sequence};
    part->sampling.reserve(static_cast<size_t>(rows));  // choices point into it
    for (int32_t i = 0; i < tokens; ++i) {
      part->ids.push_back(static_cast<int32_t>(draws_.Below(290)));
      if (i < tokens - rows) continue;
      part->rows.push_back(i);
      part->sampling.push_back(draws_.Params(vocab_));
      const bool wants_logits = logits_in > 0 && draws_.Below(logits_in) == 0;
      part->choices.push_back(
          {wants_logits ? nullptr : &part->sampling.back(), draws_.Below(1000)});
    }
    parts_.push_back(std::move(part));
  }

  void Run() {
    std::vector<SequenceChunk> chunks, plain;
    std::vector<RowChoice> choices;
    for (const auto& part : parts_) {
      plain.push_back({part->ids, part->position, part->table, part->rows});
      chunks.push_back({part->ids, part->position, part->table, part->rows, part->choices});
      choices.insert(choices.end(), part->choices.begin(), part->choices.end());
    }
    constexpr int32_t kUntouched = -77;
    std::vector<int32_t> expected(choices.size() * static_cast<size_t>(vocab_));
    std::vector<int32_t> logits(expected.size(), kUntouched), tokens(choices.size(), kUntouched);
    ASSERT_TRUE(cpu_.Forward(plain, expected.data()).ok());
    const int64_t before = state_.downloaded_bytes;
    const absl::Status status = cuda_.ForwardAndChoose(chunks, logits.data(), tokens.data());
    ASSERT_TRUE(status.ok()) << status;
    int64_t copied = 0;
    for (size_t row = 0; row < choices.size(); ++row) {
      const int32_t* const want = expected.data() + row * static_cast<size_t>(vocab_);
      const int32_t* const got = logits.data() + row * static_cast<size_t>(vocab_);
      if (choices[row].sampling == nullptr) {
        ++copied;
        ASSERT_TRUE(std::equal(want, want + vocab_, got)) << row;
      } else {
        ++chosen;
        ASSERT_EQ(std::count(got, got + vocab_, kUntouched), vocab_) << row;
        ASSERT_EQ(tokens[row], OnCpu(want, vocab_, cpu_.config().logit_fraction_bits,
                                     *choices[row].sampling, choices[row].position))
            << row;
      }
    }
    ASSERT_EQ(state_.downloaded_bytes - before, 4 * copied * vocab_);
    parts_.clear();
  }

  int chosen = 0;

 private:
  CpuExecutor& cpu_;
  CudaExecutor& cuda_;
  EmulatedDeviceState& state_;
  const int32_t vocab_;
  Draws draws_{2};
  int32_t lengths_[16] = {};
  std::vector<std::unique_ptr<Part>> parts_;
};

class CudaChoosingTest : public testing::TestWithParam<bool> {};

// Parameters, positions and which rows want logits differ from step to step of the same bucket.
TEST_P(CudaChoosingTest, StepsChooseTheTokensOfTheCpu) {
  EmulatedDeviceState state;
  CudaExecutorOptions options = kOptions;
  options.use_graphs = GetParam();
  const auto cuda = MakeCuda(kOdd, &state, options);
  const auto cpu = MakeCpu(kOdd);
  ASSERT_TRUE(cuda->chooses_tokens());
  ASSERT_FALSE(cpu->chooses_tokens());
  ChoosingSteps steps(*cpu, *cuda, state);
  for (int32_t step = 0; step < 30; ++step) {
    const uint32_t logits_in = step % 3 == 0 ? 0 : 1 + step % 4;  // 1: all
    for (int32_t i = 0; i < 1 + step / 6; ++i) {
      const int32_t tokens = step % 5 == 4 ? 3 : 1;
      steps.Add(i, tokens, step % 10 == 4 ? 2 : tokens, logits_in);
    }
    if (step % 8 == 7) steps.Add(15, 20, 1, 0);  // a prompt: no graph
    ASSERT_NO_FATAL_FAILURE(steps.Run()) << "step " << step;
  }
  EXPECT_GT(steps.chosen, 40);
  EXPECT_EQ(state.graph_launches > 10, GetParam());
}

INSTANTIATE_TEST_SUITE_P(Graphs, CudaChoosingTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "With" : "Without"; });

TEST(CudaSampleTest, WrongChoicesAreRefused) {
  EmulatedDeviceState state;
  const auto cuda = MakeCuda(kPlain, &state);
  const std::vector<int32_t> id = {1}, table = {0}, first = {0};
  std::vector<int32_t> logits(300), tokens(1);
  SamplingParams params = {.inverse_temperature_q16 = 1};
  std::vector<RowChoice> choices = {{&params, 0}};
  const auto message = [&] {
    return std::string(cuda->ForwardAndChoose({SequenceChunk{id, 0, table, first, choices}},
                                              logits.data(), tokens.data())
                           .message());
  };
  EXPECT_EQ(message(), "");
  params.top_k = 301;
  EXPECT_THAT(message(), HasSubstr("top_k is 301"));
  params = {.inverse_temperature_q16 = 1, .top_p_q16 = 0};
  EXPECT_THAT(message(), HasSubstr("top_p_q16 is 0"));
  params = {.inverse_temperature_q16 = 1, .min_p_q16 = 65537};
  EXPECT_THAT(message(), HasSubstr("min_p_q16 is 65537"));
  choices.push_back({});
  EXPECT_THAT(message(), HasSubstr("choices of a chunk is 2"));
}

TEST(CudaSampleTest, AFailedLaunchLosesTheDevice) {
  const std::vector<int32_t> id = {1}, table = {0}, first = {0};
  const SamplingParams greedy;
  const std::vector<RowChoice> choices = {{&greedy, 0}};
  std::vector<int32_t> logits(300), tokens(1, -77);
  EmulatedDeviceState state;
  const auto cuda = MakeCuda(kPlain, &state);
  const SequenceChunk chunk = {id, 0, table, first, choices};
  state.fail_launch_after = 22;  // the step's last
  const absl::Status status = cuda->ForwardAndChoose({chunk}, logits.data(), tokens.data());
  EXPECT_THAT(std::string(status.message()), HasSubstr("sample failed"));
  EXPECT_EQ(tokens[0], -77);
  EXPECT_EQ(cuda->ForwardAndChoose({chunk}, logits.data(), tokens.data()), status);
}

// Each of several devices has a part of the vocabulary: the caller chooses.
TEST(CudaSampleTest, SeveralDevicesDoNotChoose) {
  EmulatedDeviceState states[2];
  EmulatedCollectiveState sums;
  CudaDeviceGroup group;
  for (EmulatedDeviceState& state : states) {
    group.devices.push_back(std::make_unique<EmulatedDevice>(&state));
  }
  group.collective = std::make_unique<EmulatedCollective>(&sums);
  const auto cuda = CudaExecutor::Create(MakeTestModel(kPlain), std::move(group), kOptions);
  ASSERT_TRUE(cuda.ok()) << cuda.status();
  EXPECT_FALSE((*cuda)->chooses_tokens());
  EXPECT_EQ((*cuda)->ForwardAndChoose({}, nullptr, nullptr).code(),
            absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace fixpoint
