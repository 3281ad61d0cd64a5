// Linear layers in the shapes of SmolLM2-135M on one and two threads: time, GB/s of weights read,
// TOPS, and the share of what the machine allows: the larger of weights / streaming bandwidth and
// operations / register peak of the level, both measured in the same run, over the time. Takes
// levels as arguments (default all). Each level is compared with the reference before it is timed.
//
// Weights of a run are taken in turn out of 96 MB of copies, as a whole model would be, so that
// they come from memory or the last cache level and not from L2. Numbers of a shared machine jump
// by 15%: look at medians of several runs.
#include "bench/bench_util.h"
#include "bench/limits.h"

namespace fixpoint::bench {
namespace {

struct Shape {
  const char* name;
  int32_t outputs, depth;
};
constexpr Shape kShapes[] = {{"qkv", 960, 576},
                             {"o", 576, 576},
                             {"gate_up", 3072, 576},
                             {"down", 576, 1536},
                             {"head", 49152, 576}};
constexpr int32_t kTokens[] = {1, 4, 16, 64, 512};
constexpr size_t kWeightBytes = size_t{96} << 20;

struct Layer {
  Layer(const Ops& ops, const Shape& shape, const Buffer<int8_t>& weights)
      : packed_bytes(RoundUp(ops.packed_weight_bytes(shape.outputs, shape.depth), 4096)),
        copies(std::max<size_t>(1, kWeightBytes / packed_bytes)),
        packed(packed_bytes * copies) {
    for (size_t i = 0; i < copies; ++i) {
      ops.pack_weights(weights.data(), shape.outputs, shape.depth, 0, shape.outputs,
                       packed.data() + i * packed_bytes);
    }
  }
  size_t packed_bytes, copies;
  Buffer<uint8_t> packed;
};

LinearArgs MakeArgs(const Shape& shape, int32_t tokens, bool wide, Buffer<int8_t>& x,
                    Buffer<int32_t>& acc, const void* packed) {
  const size_t stride = RoundUp(shape.depth, 64);
  return {packed,
          shape.outputs,
          shape.depth,
          nullptr,
          {x.data(), wide ? x.data() + tokens * stride : nullptr, stride},
          tokens,
          0,
          shape.outputs,
          acc.data(),
          RoundUp(shape.outputs, kLinearAlign)};
}

void CheckAgainstReference(const Ops& ops, const Shape& shape) {
  constexpr int32_t kCheckTokens = 18;
  const Shape small{shape.name, std::min(shape.outputs, 608), shape.depth};
  Buffer<int8_t> weights(static_cast<size_t>(small.outputs) * small.depth),
      x(kCheckTokens * 2 * 2048);
  weights.Fill(-127, 127, 1);
  x.Fill(-127, 127, 2);
  const size_t size = kCheckTokens * RoundUp(small.outputs, kLinearAlign);
  Buffer<int32_t> expected(size), actual(size);
  Buffer<uint8_t> plain(ReferenceOps().packed_weight_bytes(small.outputs, small.depth)),
      packed(ops.packed_weight_bytes(small.outputs, small.depth));
  ReferenceOps().pack_weights(weights.data(), small.outputs, small.depth, 0, small.outputs,
                              plain.data());
  ops.pack_weights(weights.data(), small.outputs, small.depth, 0, small.outputs, packed.data());
  if (ops.thread_init != nullptr) ops.thread_init();
  for (const bool wide : {false, true}) {
    ReferenceOps().linear(MakeArgs(small, kCheckTokens, wide, x, expected, plain.data()));
    ops.linear(MakeArgs(small, kCheckTokens, wide, x, actual, packed.data()));
    if (std::memcmp(expected.data(), actual.data(), size * sizeof(int32_t)) != 0) {
      std::fprintf(stderr, "%s: wrong result in shape %s\n", ops.name, shape.name);
      std::exit(1);
    }
  }
}

// Of one and of two threads.
struct Limits {
  double bytes_per_s[3] = {}, operations_per_s[3] = {};
};

void Time(const Ops& ops, const Limits& limits, const Shape& shape, const Layer& layer,
          int32_t tokens, bool wide, int threads) {
  Buffer<int8_t> x(2 * tokens * RoundUp(shape.depth, 64));
  x.Fill(-127, 127, 3);
  Buffer<int32_t> acc(tokens * RoundUp(shape.outputs, kLinearAlign));
  const double operations = 2.0 * tokens * shape.outputs * shape.depth * (wide ? 2 : 1);
  const double weight_bytes = static_cast<double>(shape.outputs) * shape.depth;
  // About 20 ms a run at a guess of what the machine can do.
  const double guess = std::max(weight_bytes / 20e9, operations / 0.5e12);
  const auto calls = static_cast<size_t>(std::clamp(0.02 / guess, 1.0, 2000.0));
  const int32_t share =
      static_cast<int32_t>(RoundUp((shape.outputs + threads - 1) / threads, kLinearAlign));
  const double seconds =
      MedianSeconds(ops, threads, 5,
                    [&](int thread) {
                      LinearArgs args = MakeArgs(shape, tokens, wide, x, acc, nullptr);
                      args.output_begin = std::min(thread * share, shape.outputs);
                      args.output_end = std::min(args.output_begin + share, shape.outputs);
                      args.acc += args.output_begin;
                      for (size_t i = 0; i < calls; ++i) {
                        args.packed = layer.packed.data() + i % layer.copies * layer.packed_bytes;
                        ops.linear(args);
                      }
                    }) /
      static_cast<double>(calls);
  const double peak = limits.operations_per_s[threads];
  const double least =
      std::max(weight_bytes / limits.bytes_per_s[threads], peak > 0 ? operations / peak : 0);
  std::printf("%-9s %-8s %6d %5s %3d %11.1f %8.1f %8.3f %6.0f %%\n", ops.name, shape.name, tokens,
              wide ? "int16" : "int8", threads, seconds * 1e6, weight_bytes / seconds / 1e9,
              operations / seconds / 1e12, 100 * least / seconds);
  std::fflush(stdout);
}

void RunLevel(const Ops& ops) {
  const bool slow = std::string(ops.name) == "portable";
  Limits limits;
  for (const int threads : {1, 2}) {
    limits.bytes_per_s[threads] = StreamingBandwidth(threads);
    limits.operations_per_s[threads] = MultiplyPeak(ops, threads);
    std::printf("%-9s limits of %d threads: %.1f GB/s, %.2f TOPS\n", ops.name, threads,
                limits.bytes_per_s[threads] / 1e9, limits.operations_per_s[threads] / 1e12);
  }
  for (const Shape& shape : kShapes) {
    CheckAgainstReference(ops, shape);
    Buffer<int8_t> weights(static_cast<size_t>(shape.outputs) * shape.depth);
    weights.Fill(-127, 127, 4);
    const Layer layer(ops, shape, weights);
    for (const int32_t tokens : kTokens) {
      // The head runs for the last token of a prompt only.
      if (tokens > 16 && (slow || shape.outputs > 4096)) continue;
      for (const int threads : {1, 2}) Time(ops, limits, shape, layer, tokens, false, threads);
      if (shape.depth == 1536) Time(ops, limits, shape, layer, tokens, true, 2);
    }
  }
}

}  // namespace
}  // namespace fixpoint::bench

int main(int argc, char** argv) {
  using namespace fixpoint;
  const std::vector<const Ops*> levels = bench::LevelsFromArguments(argc, argv);
  std::printf("%s, %u CPUs\n", bench::CpuName().c_str(), std::thread::hardware_concurrency());
  std::printf("%-9s %-8s %6s %5s %3s %11s %8s %8s %8s\n", "level", "layer", "tokens", "site", "thr",
              "us", "GB/s", "TOPS", "limit");
  for (const Ops* ops : levels) bench::RunLevel(*ops);
  return 0;
}
