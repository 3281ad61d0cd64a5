// The kernels' sources on the emulator, bit for bit the reference, with the threads of a block in
// either order; and the emulator's own promises.
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/emulator.h"
#include "kernels/cuda/kernel_cases.h"

namespace fixpoint {
namespace {

using emulator::Order;

class HostDevice : public CaseDevice {
 public:
  const CudaKernels& kernels() const override { return EmulatedKernels(); }
  void* Allocate(size_t bytes) override {
    return ::operator new (bytes == 0 ? 1 : bytes, std::align_val_t{256});
  }
  void Free(void* memory) override { ::operator delete (memory, std::align_val_t{256}); }
  void Upload(void* device, const void* host, size_t bytes) override {
    if (bytes > 0) std::memcpy(device, host, bytes);
  }
  void Download(void* host, const void* device, size_t bytes) override {
    if (bytes > 0) std::memcpy(host, device, bytes);
  }
};

class EmulatedKernelTest : public testing::TestWithParam<std::tuple<size_t, Order>> {};

TEST_P(EmulatedKernelTest, GivesTheBitsOfTheReference) {
  const auto [index, order] = GetParam();
  emulator::SetOrder(order);
  HostDevice device;
  EXPECT_EQ(KernelCases()[index].run(device), "");
  emulator::SetOrder(Order::kForward);
}

INSTANTIATE_TEST_SUITE_P(Cases, EmulatedKernelTest,
                         testing::Combine(testing::Range(size_t{0}, KernelCases().size()),
                                          testing::Values(Order::kForward, Order::kBackward)),
                         [](const auto& info) {
                           const bool forward = std::get<1>(info.param) == Order::kForward;
                           return std::string(KernelCases()[std::get<0>(info.param)].name) +
                                  (forward ? "Forward" : "Backward");
                         });

TEST(DeviceArithmeticTest, NumeratorsIn32BitsAreThoseOfTheReference) {
  const ScoreParams params[] = {{(1 << 30) - 1, 15, 65535, 1},
                                {1 << 20, 6, 40000, 15},
                                {1 << 20, 0, 1500, 30},
                                {32767 * 17, 0, 1, 1}};
  for (const ScoreParams& s : params) {
    for (int64_t d = 0; d <= s.d_max; d += 1 + s.d_max / 300000) {
      const auto distance = static_cast<int32_t>(d);
      ASSERT_EQ(cuda_emulated::Numerator32(distance, s), SoftmaxNumerator(distance, s)) << d;
    }
    EXPECT_EQ(cuda_emulated::Numerator32(INT32_MAX, s), SoftmaxNumerator(INT32_MAX, s));
  }
}

TEST(DeviceArithmeticTest, LongDivisionIsDivision) {
  uint64_t state = 1;
  for (int i = 0; i < 100000; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const uint64_t divisor = (state >> 33) | (uint64_t{1} << 30);
    for (const uint64_t n : {uint64_t{1} << 61, uint64_t{1} << 62, state >> 2}) {
      if (n / divisor >> 32 != 0) continue;
      ASSERT_EQ(LongDivide{}(n, divisor), n / divisor);
    }
  }
}

TEST(AttentionTilesTest, EveryRowIsInOneTile) {
  for (const int32_t max_rows : {kDecodeRows, kPrefillRows}) {
    for (const int32_t group : {1, 3, 7, 8, 9, 32, 33, 100}) {
      for (const int32_t tokens : {1, 2, 10, 65}) {
        AttentionTile tiles[65 * 13];
        const int32_t count = MakeTiles({5, tokens, 60, 3}, group, max_rows, tiles);
        ASSERT_EQ(count, CountTiles(tokens, group, max_rows));
        std::vector<int> seen(static_cast<size_t>(tokens * group));
        for (int32_t i = 0; i < count; ++i) {
          const AttentionTile& t = tiles[i];
          ASSERT_LE(t.tokens * t.heads, max_rows);
          ASSERT_EQ(t.position - 60, t.token - 5);
          ASSERT_EQ(t.table_begin, 3);
          for (int32_t token = 0; token < t.tokens; ++token) {
            for (int32_t head = 0; head < t.heads; ++head) {
              ++seen[static_cast<size_t>((t.token - 5 + token) * group + t.head_begin + head)];
            }
          }
        }
        for (const int times : seen) ASSERT_EQ(times, 1);
      }
    }
  }
}

// A small kernel for what the emulator must notice.
struct BadArgs {
  int what;
  int32_t* out;
};
void BadKernel(const BadArgs args) {
  auto* shared = reinterpret_cast<int32_t*>(emulator::SharedMemory());
  const int32_t thread = emulator::ThreadIndex();
  switch (args.what) {
    case 0:  // a barrier that half of the threads pass by
      if (thread < 32) emulator::SyncThreads();
      break;
    case 1:  // a shuffle without one lane
      if (thread != 5) args.out[thread] = emulator::ShuffleXor(thread, 1);
      break;
    case 2:
      emulator::CheckAligned(reinterpret_cast<uint8_t*>(args.out) + 4, 16);
      break;
    case 3:  // no barrier between writing and reading
    case 4:
      shared[thread] = thread;
      if (args.what == 4) emulator::SyncThreads();
      args.out[thread] = shared[63 - thread];
      break;
  }
}
void RunBad(int what, int32_t* out) {
  BadArgs args = {what, out};
  emulator::Run(
      {1, 1, 1}, 64, 64 * sizeof(int32_t),
      [](const void* context) { BadKernel(*static_cast<const BadArgs*>(context)); }, &args);
}

TEST(EmulatorDeathTest, NoticesBrokenRules) {
  alignas(16) int32_t out[64];
  EXPECT_DEATH(RunBad(0, out), "a barrier that not all threads of the block reach");
  EXPECT_DEATH(RunBad(1, out), "a barrier that not all threads|wait for different things");
  EXPECT_DEATH(RunBad(2, out), "misaligned");
}

TEST(EmulatorTest, AMissingBarrierShowsInEitherOrder) {
  for (const Order order : {Order::kForward, Order::kBackward}) {
    emulator::SetOrder(order);
    int32_t out[64] = {};
    RunBad(3, out);
    bool wrong = false;
    for (int32_t i = 0; i < 64; ++i) wrong |= out[i] != 63 - i;
    EXPECT_TRUE(wrong);
    RunBad(4, out);
    for (int32_t i = 0; i < 64; ++i) EXPECT_EQ(out[i], 63 - i);
  }
  emulator::SetOrder(Order::kForward);
}

}  // namespace
}  // namespace fixpoint
