// Attention and the operations between matrix products, in the shapes of SmolLM2-135M, on one
// thread: time a call and what that means for a whole model of 30 layers. Takes levels as arguments
// (default all). Attention is compared with the reference before it is timed; its share of what the
// machine allows is the larger of K and V / streaming bandwidth and multiplications / register peak
// of the level, both measured in the same run, over the time (numerators are in neither).
#include "bench/bench_util.h"
#include "bench/limits.h"

namespace fixpoint::bench {
namespace {

constexpr int32_t kHeads = 9, kKvHeads = 3, kHeadDim = 64, kHidden = 576, kIntermediate = 1536;
constexpr int32_t kLayers = 30, kPrefix = 1;

struct Attention {
  Attention(int32_t tokens, int32_t position)
      : tokens(tokens),
        position(position),
        keys(position + tokens),
        blocks((keys + kKvBlockTokens - 1) / kKvBlockTokens),
        block_stride(size_t{2} * kKvHeads * kKvBlockTokens * kHeadDim),
        cache(blocks * block_stride),
        q(static_cast<size_t>(tokens) * kHidden),
        prefix_k(kKvHeads * kPrefix * kHeadDim),
        prefix_v(kKvHeads * kPrefix * kHeadDim),
        multipliers(kHidden),
        scores(kHeads, {.d_max = 1 << 19, .a = 5, .c = 40000, .n = 10}) {
    cache.Fill(-127, 127, 1);
    q.Fill(-127, 127, 2);
    prefix_k.Fill(-5000, 5000, 3);
    prefix_v.Fill(-5000, 5000, 4);
    multipliers.Fill(1, 32767, 5);
    for (int32_t i = 0; i < blocks; ++i) table.push_back(blocks - 1 - i);
  }
  void Run(const Ops& ops, Buffer<int8_t>& out, Buffer<uint8_t>& scratch) {
    ops.attention({q.data(),
                   kHidden,
                   tokens,
                   position,
                   kHeads,
                   kKvHeads,
                   kHeadDim,
                   0,
                   kKvHeads,
                   {cache.data(), block_stride},
                   table.data(),
                   prefix_k.data(),
                   prefix_v.data(),
                   kPrefix,
                   scores.data(),
                   {multipliers.data(), 0, 20},
                   {out.data(), nullptr, kHidden},
                   scratch.data()});
  }
  // K and V, once.
  double Bytes() const { return 2.0 * keys * kKvHeads * kHeadDim; }
  // Scores, and weighted sums of two planes; what causality leaves.
  double Operations() const {
    const double pairs = (position + 0.5 * (tokens + 1)) * tokens * kHeads;
    return 2.0 * 3 * pairs * kHeadDim;
  }
  size_t ScratchBytes(const Ops& ops) const {
    return ops.attention_scratch_bytes(tokens, keys + kPrefix, kHeads, kKvHeads, kHeadDim);
  }

  int32_t tokens, position, keys, blocks;
  size_t block_stride;
  Buffer<int8_t> cache, q;
  Buffer<int16_t> prefix_k, prefix_v, multipliers;
  std::vector<ScoreParams> scores;
  std::vector<int32_t> table;
};

template <typename Body>
double Seconds(const Ops& ops, const Body& body) {
  const double first = MedianSeconds(ops, 1, 1, [&](int) { body(); });
  const int calls = static_cast<int>(std::clamp(0.01 / first, 1.0, 10000.0));
  return MedianSeconds(ops, 1, 5,
                       [&](int) {
                         for (int i = 0; i < calls; ++i) body();
                       }) /
         calls;
}

void Print(const char* level, const std::string& what, int32_t tokens, double seconds) {
  std::printf("%-9s %-28s %6d %11.2f %14.2f", level, what.c_str(), tokens, seconds * 1e6,
              seconds * 1e6 * kLayers / tokens);
}

template <typename Body>
void Time(const Ops& ops, const std::string& what, int32_t tokens, const Body& body) {
  Print(ops.name, what, tokens, Seconds(ops, body));
  std::printf("\n");
  std::fflush(stdout);
}

void CheckAttention(const Ops& ops) {
  Attention work(20, 100);
  Buffer<int8_t> expected(20 * kHidden), actual(20 * kHidden);
  Buffer<uint8_t> plain(work.ScratchBytes(ReferenceOps())), scratch(work.ScratchBytes(ops));
  if (ops.thread_init != nullptr) ops.thread_init();
  work.Run(ReferenceOps(), expected, plain);
  work.Run(ops, actual, scratch);
  if (std::memcmp(expected.data(), actual.data(), expected.size()) != 0) {
    std::fprintf(stderr, "%s: wrong attention\n", ops.name);
    std::exit(1);
  }
}

void TimeAttention(const Ops& ops) {
  CheckAttention(ops);
  const double bandwidth = StreamingBandwidth(1), peak = MultiplyPeak(ops, 1);
  std::printf("%-9s limits: %.1f GB/s, %.2f TOPS\n", ops.name, bandwidth / 1e9, peak / 1e12);
  for (const auto& [tokens, position] :
       {std::pair(1, 127), std::pair(1, 511), std::pair(1, 2047), std::pair(1, 8191),
        std::pair(64, 448), std::pair(512, 0), std::pair(512, 1536), std::pair(512, 7680)}) {
    Attention work(tokens, position);
    Buffer<int8_t> out(static_cast<size_t>(tokens) * kHidden);
    Buffer<uint8_t> scratch(work.ScratchBytes(ops));
    const double seconds = Seconds(ops, [&] { work.Run(ops, out, scratch); });
    Print(ops.name, "attention at " + std::to_string(position), tokens, seconds);
    const double least =
        std::max(work.Bytes() / bandwidth, peak > 0 ? work.Operations() / peak : 0);
    std::printf(" %6.2f GB/s %6.3f TOPS %4.0f %%\n", work.Bytes() / seconds / 1e9,
                work.Operations() / seconds / 1e12, 100 * least / seconds);
    std::fflush(stdout);
  }
}

void TimeElementwise(const Ops& ops) {
  constexpr int32_t kTokens = 64;
  Buffer<int32_t> acc(kTokens * 2 * kIntermediate), h(kTokens * kHidden), scratch(kIntermediate),
      wide_multipliers(2 * kIntermediate);
  Buffer<int16_t> multipliers(2 * kIntermediate), angles(kTokens * kHeadDim / 2);
  Buffer<int8_t> out(kTokens * kIntermediate);
  acc.Fill(-1000000, 1000000, 1);
  h.Fill(-10000000, 10000000, 2);
  multipliers.Fill(1, 32767, 3);
  wide_multipliers.Fill(1, INT32_MAX, 4);
  angles.Fill(-16384, 16384, 5);
  const NarrowParams narrow{multipliers.data(), 6, 15};
  Time(ops, "rms_norm 576", kTokens, [&] {
    ops.rms_norm({h.data(),
                  kTokens,
                  kHidden,
                  1000,
                  14,
                  multipliers.data(),
                  20,
                  {out.data(), nullptr, kHidden}});
  });
  for (const bool hadamard : {false, true}) {
    Time(ops, hadamard ? "rotate 12 heads, hadamard" : "rotate 12 heads", kTokens, [&] {
      ops.rotate_heads({acc.data(), 960, kTokens, kHeads + kKvHeads, kHeadDim, narrow,
                        angles.data(), angles.data(), kHeadDim / 2, hadamard, narrow, out.data(),
                        768});
    });
  }
  Time(ops, "narrow 192", kTokens, [&] {
    ops.narrow({acc.data(), 960, kTokens, 192, narrow, out.data(), 192});
  });
  Time(ops, "residual_add 576", kTokens, [&] {
    ops.residual_add(
        {acc.data(), kHidden, kTokens, kHidden, {wide_multipliers.data(), 45}, h.data()});
  });
  for (const int32_t block : {1, 64, 512}) {
    Time(ops, "swiglu 1536, hadamard " + std::to_string(block), kTokens, [&] {
      ops.swiglu({acc.data(),
                  acc.data() + kIntermediate,
                  2 * kIntermediate,
                  kTokens,
                  kIntermediate,
                  narrow,
                  narrow,
                  1000,
                  10,
                  10,
                  block,
                  narrow,
                  {out.data(), nullptr, kIntermediate},
                  scratch.data()});
    });
  }
}

}  // namespace
}  // namespace fixpoint::bench

int main(int argc, char** argv) {
  using namespace fixpoint;
  const std::vector<const Ops*> levels = bench::LevelsFromArguments(argc, argv);
  std::printf("%s, one thread\n", bench::CpuName().c_str());
  std::printf("%-9s %-28s %6s %11s %14s %11s %11s %6s\n", "level", "operation", "tokens",
              "us a call", "us/token x 30", "read", "multiplied", "limit");
  for (const Ops* ops : levels) {
    bench::TimeAttention(*ops);
    bench::TimeElementwise(*ops);
  }
  return 0;
}
