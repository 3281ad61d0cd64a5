#include "calibrator/product_peak.h"

#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

namespace fixpoint {
namespace {

constexpr int kRounds = 5;  // the best counts: a peak is what nothing has disturbed
constexpr double kRoundSeconds = 0.02;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Blocks of `flops` operations until the time is over; operations a second.
using Block = void (*)();
double Rate(double flops, Block block) {
  const double start = Now();
  int64_t blocks = 0;
  double seconds = 0;
  do {
    block();
    ++blocks;
    seconds = Now() - start;
  } while (seconds < kRoundSeconds);
  return flops * static_cast<double>(blocks) / seconds;
}

constexpr int kLoops = 1000;

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

__attribute__((target("amx-tile"))) void BeginTiles() {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = 16;
  }
  // gcc 12 does not see that the instruction reads the memory behind its operand.
  __asm__ volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
}

__attribute__((target("amx-tile"))) void EndTiles() { _tile_release(); }

// Four accumulators of two by two operands, as a kernel would block them.
constexpr double kTileFlops = kLoops * 4 * 2.0 * 16 * 16 * 32;
__attribute__((target("amx-tile,amx-bf16"))) void MultiplyTiles() {
  for (int i = 0; i < kLoops; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

constexpr int kSums = 12;  // independent ones hide the latency of the multiply-adds

__attribute__((target("avx512f"))) void MultiplyAdd512() {
  __m512 sums[kSums] = {}, factor = _mm512_setzero_ps();
  __asm__ volatile("" : "+v"(factor));
  for (int i = 0; i < kLoops; ++i) {
#pragma GCC unroll 12
    for (__m512& sum : sums) sum = _mm512_fmadd_ps(factor, factor, sum);
  }
#pragma GCC unroll 12
  for (__m512& sum : sums) __asm__ volatile("" : "+v"(sum));
}

__attribute__((target("avx2,fma"))) void MultiplyAdd256() {
  __m256 sums[kSums] = {}, factor = _mm256_setzero_ps();
  __asm__ volatile("" : "+x"(factor));
  for (int i = 0; i < kLoops; ++i) {
#pragma GCC unroll 12
    for (__m256& sum : sums) sum = _mm256_fmadd_ps(factor, factor, sum);
  }
#pragma GCC unroll 12
  for (__m256& sum : sums) __asm__ volatile("" : "+x"(sum));
}

void MultiplyAdd128() {
  __m128 sums[kSums] = {}, factor = _mm_setzero_ps();
  __asm__ volatile("" : "+x"(factor));
  for (int i = 0; i < kLoops; ++i) {
#pragma GCC unroll 12
    for (__m128& sum : sums) sum = _mm_add_ps(_mm_mul_ps(factor, factor), sum);
  }
#pragma GCC unroll 12
  for (__m128& sum : sums) __asm__ volatile("" : "+x"(sum));
}

double ThreadRate(bool bf16) {
  if (bf16) {
    BeginTiles();
    const double rate = Rate(kTileFlops, MultiplyTiles);
    EndTiles();
    return rate;
  }
  const auto flops = [](int lanes) { return kLoops * kSums * 2.0 * lanes; };
  if (__builtin_cpu_supports("avx512f")) return Rate(flops(16), MultiplyAdd512);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return Rate(flops(8), MultiplyAdd256);
  return Rate(flops(4), MultiplyAdd128);
}

}  // namespace

double MeasureProductPeak(bool bf16, ThreadPool& pool) {
  const int threads = pool.thread_count();
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    // One task a thread: each lasts a fixed time, so they run at once.
    std::vector<double> rates(threads);
    pool.ParallelFor(threads, 1,
                     [&](int64_t begin, int64_t, int) { rates[begin] = ThreadRate(bf16); });
    double sum = 0;
    for (const double rate : rates) sum += rate;
    best = std::max(best, sum);
  }
  return best;
}

}  // namespace fixpoint
