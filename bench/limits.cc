#include "bench/limits.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "bench/bench_util.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fixpoint::bench {
namespace {

constexpr int kRepeats = 5;

// The shortest time of the slowest of `threads` threads, which begin together.
template <typename Body>
double BestSeconds(const Ops& ops, int threads, const Body& body) {
  double best = 1e9;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    best = std::min(best, MedianSeconds(ops, threads, 1, body));
  }
  return best;
}

#if defined(__x86_64__)
constexpr int64_t kRounds = 2'000'000;

// Each returns how many operations one thread has done. The accumulators are independent, so that
// the instruction's throughput counts and not its latency; `keep` stops the compiler from dropping
// them.
__attribute__((target("avx512f,avx512vnni"))) double VnniRounds(std::atomic<int>* keep) {
  constexpr int kAccumulators = 12;
  __m512i acc[kAccumulators];
  for (auto& a : acc) a = _mm512_setzero_si512();
  __m512i x = _mm512_set1_epi8(3), w = _mm512_set1_epi8(5);
  for (int64_t i = 0; i < kRounds; ++i) {
#pragma GCC unroll 12
    for (int k = 0; k < kAccumulators; ++k) acc[k] = _mm512_dpbusd_epi32(acc[k], x, w);
    asm volatile("" : "+v"(x), "+v"(w));
  }
  for (const __m512i& a : acc) *keep += _mm512_reduce_add_epi32(a);
  return static_cast<double>(kRounds) * kAccumulators * 64 * 2;
}

__attribute__((target("avx2"))) double Avx2Rounds(std::atomic<int>* keep) {
  constexpr int kAccumulators = 6;
  __m256i acc[kAccumulators];
  for (auto& a : acc) a = _mm256_setzero_si256();
  __m256i x = _mm256_set1_epi8(3), w = _mm256_set1_epi8(5);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t i = 0; i < kRounds; ++i) {
#pragma GCC unroll 6
    for (int k = 0; k < kAccumulators; ++k) {
      asm volatile("" : "+x"(x));  // or the six products would be one
      acc[k] = _mm256_add_epi32(acc[k], _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), ones));
    }
  }
  for (const __m256i& a : acc) *keep += _mm256_extract_epi32(a, 0);
  return static_cast<double>(kRounds) * kAccumulators * 32 * 2;
}

// On the tiles as thread_init of the amx level leaves them: 16 rows of 64 bytes.
__attribute__((target("amx-tile,amx-int8"))) double AmxRounds(std::atomic<int>*) {
  constexpr int64_t kAmxRounds = kRounds / 20;
  for (int64_t i = 0; i < kAmxRounds; ++i) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  return static_cast<double>(kAmxRounds) * 4 * 16 * 16 * 64 * 2;
}
#endif

}  // namespace

double StreamingBandwidth(int threads) {
  constexpr size_t kBytes = size_t{512} << 20;
  constexpr size_t kStreams = 8;
  Buffer<uint64_t> buffer(kBytes / sizeof(uint64_t));
  std::fill_n(buffer.data(), buffer.size(), uint64_t{1});  // zeroed pages may share memory
  std::atomic<uint64_t> keep{0};
  const double seconds = BestSeconds(ReferenceOps(), threads, [&](int thread) {
    const size_t words = buffer.size() / static_cast<size_t>(threads);
    const uint64_t* base = buffer.data() + static_cast<size_t>(thread) * words;
    const size_t stream = words / kStreams / 8 * 8;
    uint64_t sums[8] = {};
    for (size_t i = 0; i + 8 <= stream; i += 8) {
      for (size_t s = 0; s < kStreams; ++s) {
        for (size_t j = 0; j < 8; ++j) sums[j] += base[s * stream + i + j];
      }
    }
    keep += std::accumulate(sums, sums + 8, uint64_t{0});
  });
  return static_cast<double>(kBytes) / seconds;
}

double MultiplyPeak(const Ops& ops, int threads) {
#if defined(__x86_64__)
  const std::string level = ops.name;
  const auto rounds = level == "amx"    ? AmxRounds
                      : level == "vnni" ? VnniRounds
                      : level == "avx2" ? Avx2Rounds
                                        : nullptr;
  if (rounds == nullptr) return 0;
  std::atomic<int> keep{0};
  std::vector<double> done(static_cast<size_t>(threads));
  const double seconds = BestSeconds(
      ops, threads, [&](int thread) { done[static_cast<size_t>(thread)] = rounds(&keep); });
  return std::accumulate(done.begin(), done.end(), 0.0) / seconds;
#else
  (void)ops;
  (void)threads;
  return 0;
#endif
}

}  // namespace fixpoint::bench
