#include "kernels/cuda/kernel_cases.h"

#include <vector>

#include "kernels/cuda/case_data.h"
#include "kernels/reference/reference_ops.h"

namespace fixpoint {
namespace {

constexpr int32_t kChannelCounts[] = {1, 15, 33, 64, 100, 192, 576};
constexpr int32_t kRounds = 8;

struct GemmShape {
  int32_t tokens, outputs, depth, splits;
  bool wide;
};

std::string CompareGemm(CaseDevice& device, const GemmShape& s, Random* random) {
  const auto outputs = static_cast<size_t>(s.outputs), depth = static_cast<size_t>(s.depth);
  Aligned<int8_t> weights(outputs * depth);
  Site x(s.tokens, s.depth, s.wide);
  if (random == nullptr) {  // the largest sums
    for (size_t i = 0; i < weights.size(); ++i) weights[i] = 127;
    for (size_t i = 0; i < x.hi.size(); ++i) x.hi[i] = 127;
    for (size_t i = 0; i < x.lo.size(); ++i) x.lo[i] = -127;
  } else {
    random->Fill(weights, -127, 127);
    random->Fill(x.hi, -127, 127);
    random->Fill(x.lo, -128, 127);
  }
  const size_t stride = RoundUp(outputs, kLinearAlign);
  Aligned<int32_t> expected(static_cast<size_t>(s.tokens) * stride);
  ReferenceOps().linear({weights.data(), s.outputs, s.depth, nullptr, x.planes(), s.tokens, 0,
                         s.outputs, expected.data(), stride});

  DeviceArray<int8_t> device_weights(device, weights);
  DeviceSite device_x(device, x, /*poisoned=*/false);
  const size_t split_stride = static_cast<size_t>(s.tokens) * outputs;
  const size_t plane_stride = split_stride * static_cast<size_t>(s.splits);
  DeviceArray<int32_t> acc(device, plane_stride * (s.wide ? 2 : 1));
  const std::string error = LaunchError(device.kernels().gemm({.weights = device_weights.get(),
                                                               .outputs = s.outputs,
                                                               .depth = s.depth,
                                                               .x = device_x.planes(),
                                                               .tokens = s.tokens,
                                                               .splits = s.splits,
                                                               .acc = acc.get(),
                                                               .acc_stride = outputs,
                                                               .split_stride = split_stride,
                                                               .plane_stride = plane_stride},
                                                              device.stream()));
  if (!error.empty()) return error;
  const Aligned<int32_t> parts = acc.Read();
  for (int32_t t = 0; t < s.tokens; ++t) {
    for (size_t c = 0; c < outputs; ++c) {
      int32_t sums[2] = {};
      for (size_t plane = 0; plane <= static_cast<size_t>(s.wide); ++plane) {
        for (size_t split = 0; split < static_cast<size_t>(s.splits); ++split) {
          sums[plane] += parts[plane * plane_stride + split * split_stride +
                               static_cast<size_t>(t) * outputs + c];
        }
      }
      const int32_t got = sums[0] + RoundShift(sums[1], 8);
      const int32_t want = expected[static_cast<size_t>(t) * stride + c];
      if (got != want) {
        return std::to_string(s.tokens) + " tokens, " + std::to_string(s.outputs) + " outputs, " +
               std::to_string(s.depth) + " deep, " + std::to_string(s.splits) + " splits" +
               (s.wide ? ", int16" : "") + ": [" + std::to_string(t) + "][" + std::to_string(c) +
               "] expected " + std::to_string(want) + ", got " + std::to_string(got);
      }
    }
  }
  return "";
}

// The norm's parameters with their device copy and where its result goes.
struct NormData {
  NormData(CaseDevice& device, Random& random, int32_t rows, int32_t hidden, int32_t round)
      : multipliers(NarrowData::Multipliers(random, hidden)),
        device_multipliers(device, multipliers),
        expected(rows, hidden, round % 2 == 1),
        actual(device, expected, /*poisoned=*/true) {
    epsilon = round == 4 ? (uint64_t{1} << 60) - 1 : static_cast<uint64_t>(random.In(0, 1 << 20));
    fraction_bits = round == 2 ? 30 : static_cast<int32_t>(random.In(8, 16));
    k = round == 3 ? 1 : static_cast<int32_t>(random.In(8, 30));
  }
  RmsNormArgs Reference(const int32_t* h, int32_t tokens, int32_t hidden) {
    return {h, tokens, hidden, epsilon, fraction_bits, multipliers.data(), k, expected.planes()};
  }
  CudaNorm OnDevice() {
    return {epsilon, fraction_bits, device_multipliers.get(), k, actual.planes()};
  }
  Aligned<int16_t> multipliers;
  DeviceArray<int16_t> device_multipliers;
  Site expected;
  DeviceSite actual;
  uint64_t epsilon = 0;
  int32_t fraction_bits = 8, k = 1;
};

std::string At(const std::string& difference, int32_t shape, int32_t round) {
  if (difference.empty()) return "";
  return std::to_string(shape) + " channels, round " + std::to_string(round) + ": " + difference;
}

void FillResidual(Random& random, Aligned<int32_t>& h, int32_t round) {
  for (size_t i = 0; i < h.size(); ++i) {
    h[i] = round == 0   ? 0
           : round == 1 ? (i % 2 == 0 ? kResidualLimit : -kResidualLimit)
                        : static_cast<int32_t>(random.Extreme(-kResidualLimit, kResidualLimit)) >>
                              random.In(0, round);
  }
}

}  // namespace

std::string GemmCase(CaseDevice& device) {
  Random random(1);
  std::string difference;
  // Every kernel of the token counts, tails of columns, more than one tile of columns, ranges of
  // the depth that are empty for some warps or whole splits.
  for (const int32_t tokens : {1, 3, 8, 9, 16, 17, 31, 32, 33, 64, 65, 100}) {
    for (const bool wide : {false, true}) {
      const int32_t splits = 1 + tokens % 4;
      const int32_t depth = 64 * static_cast<int32_t>(random.In(1, 20));
      const int32_t outputs = 16 * static_cast<int32_t>(random.In(1, 9));
      difference = CompareGemm(device, {tokens, outputs, depth, splits, wide}, &random);
      if (!difference.empty()) return difference;
    }
  }
  for (const GemmShape& shape : {GemmShape{1, 16, 64, 7, false}, GemmShape{5, 48, 64 * 33, 2, true},
                                 GemmShape{20, 80, 64 * 9, 3, false}}) {
    difference = CompareGemm(device, shape, &random);
    if (!difference.empty()) return difference;
  }
  return "";
}

std::string GemmDeepestCase(CaseDevice& device) {
  return CompareGemm(device, {9, 16, kMaxDepth, 3, true}, nullptr);
}

std::string EmbedCase(CaseDevice& device) {
  Random random(2);
  constexpr int32_t kVocab = 50, kTokens = 3;
  for (const int32_t hidden : kChannelCounts) {
    for (int32_t round = 0; round < kRounds; ++round) {
      Aligned<int8_t> table(static_cast<size_t>(kVocab) * hidden);
      random.Fill(table, -127, 127);
      Aligned<int32_t> ids(kTokens);
      random.Fill(ids, 0, kVocab - 1);
      WideData wide(device, random, kVocab, round);
      wide.n = static_cast<int32_t>(random.In(1, 38));
      NormData norm(device, random, kTokens, hidden, round);
      Aligned<int32_t> h(static_cast<size_t>(kTokens) * hidden);
      EmbedArgs args{table.data(), wide.on_host(), ids.data(), kTokens, hidden, h.data()};
      ReferenceOps().embed(args);
      ReferenceOps().rms_norm(norm.Reference(h.data(), kTokens, hidden));
      DeviceArray<int8_t> device_table(device, table);
      DeviceArray<int32_t> device_ids(device, ids), device_h(device, h.size());
      args.table = device_table.get();
      args.requantize = wide.on_device();
      args.token_ids = device_ids.get();
      args.h = device_h.get();
      std::string difference =
          LaunchError(device.kernels().embed({args, norm.OnDevice()}, device.stream()));
      if (difference.empty()) difference = Compare(h, device_h.Read());
      if (difference.empty()) difference = norm.actual.Compare(norm.expected, kTokens, hidden);
      if (!difference.empty()) return At(difference, hidden, round);
    }
  }
  return "";
}

std::string ResidualCase(CaseDevice& device) {
  Random random(3);
  constexpr int32_t kTokens = 3;
  for (const int32_t hidden : kChannelCounts) {
    for (int32_t round = 0; round < kRounds; ++round) {
      AccumulatorData acc(device, random, kTokens, hidden, round);
      WideData wide(device, random, hidden, round);
      NormData norm(device, random, kTokens, hidden, round);
      Aligned<int32_t> h(static_cast<size_t>(kTokens) * hidden);
      FillResidual(random, h, round);
      DeviceArray<int32_t> device_h(device, h);
      ReferenceOps().residual_add(
          {acc.total.data(), acc.stride, kTokens, hidden, wide.on_host(), h.data()});
      ReferenceOps().rms_norm(norm.Reference(h.data(), kTokens, hidden));
      const bool last = round == kRounds - 1;  // the last layer has no norm behind it
      std::string difference = LaunchError(
          device.kernels().residual({acc.view(), kTokens, hidden, wide.on_device(), device_h.get(),
                                     last ? CudaNorm{} : norm.OnDevice()},
                                    device.stream()));
      if (difference.empty()) difference = Compare(h, device_h.Read());
      if (difference.empty()) {
        difference = norm.actual.Compare(norm.expected, kTokens, last ? 0 : hidden);
      }
      if (!difference.empty()) return At(difference, hidden, round);
    }
  }
  return "";
}

std::string GatherNormCase(CaseDevice& device) {
  Random random(4);
  constexpr int32_t kTokens = 5;
  for (const int32_t hidden : kChannelCounts) {
    for (int32_t round = 0; round < kRounds; ++round) {
      Aligned<int32_t> h(static_cast<size_t>(kTokens) * hidden), rows(2);
      FillResidual(random, h, round);
      rows[0] = 4;
      rows[1] = static_cast<int32_t>(random.In(0, 3));
      NormData norm(device, random, 2, hidden, round);
      Aligned<int32_t> gathered(static_cast<size_t>(2) * hidden);
      for (int32_t i = 0; i < 2; ++i) {
        std::memcpy(gathered.data() + i * hidden, h.data() + rows[i] * hidden,
                    sizeof(int32_t) * hidden);
      }
      ReferenceOps().rms_norm(norm.Reference(gathered.data(), 2, hidden));
      DeviceArray<int32_t> device_h(device, h), device_rows(device, rows);
      std::string difference = LaunchError(device.kernels().gather_norm(
          {device_h.get(), device_rows.get(), 2, hidden, norm.OnDevice()}, device.stream()));
      if (difference.empty()) difference = norm.actual.Compare(norm.expected, 2, hidden);
      if (!difference.empty()) return At(difference, hidden, round);
    }
  }
  return "";
}

std::string LogitsCase(CaseDevice& device) {
  Random random(5);
  constexpr int32_t kRows = 3;
  for (const int32_t vocab : {1, 255, 256, 300, 1000}) {
    for (int32_t round = 0; round < kRounds; ++round) {
      AccumulatorData acc(device, random, kRows, vocab, round);
      WideData wide(device, random, vocab, round);
      Aligned<int32_t> expected(static_cast<size_t>(kRows) * vocab);
      ReferenceOps().logits({acc.total.data(), acc.stride, kRows, 0, vocab, wide.on_host(),
                             expected.data(), static_cast<size_t>(vocab)});
      DeviceArray<int32_t> actual(device, expected.size());
      std::string difference = LaunchError(device.kernels().logits(
          {acc.view(), kRows, vocab, wide.on_device(), actual.get()}, device.stream()));
      if (difference.empty()) difference = Compare(expected, actual.Read());
      if (!difference.empty()) return At(difference, vocab, round);
    }
  }
  return "";
}

std::string SwiGluCase(CaseDevice& device) {
  Random random(6);
  constexpr int32_t kTokens = 2;
  for (const int32_t channels : {1, 2, 24, 48, 64, 192, 512, 1536, 2560}) {
    for (int32_t block = 1; block <= 512 && channels % block == 0; block *= 2) {
      const int32_t round = static_cast<int32_t>(random.In(0, kRounds - 1));
      AccumulatorData acc(device, random, kTokens, 2 * channels, round);
      NarrowData gate(device, random, channels, round), up(device, random, channels, round),
          out(device, random, channels, (round + 3) % kRounds);
      Site expected(kTokens, channels, (round + block) % 2 == 1);
      DeviceSite actual(device, expected, /*poisoned=*/true);
      Aligned<int32_t> scratch(static_cast<size_t>(channels));
      const auto multiplier = static_cast<int32_t>(random.Extreme(1, 32767));
      const int32_t sigmoid_shift = round == 0 ? 1 : static_cast<int32_t>(random.In(10, 30));
      const int32_t product_shift = round == 1 ? 1 : static_cast<int32_t>(random.In(10, 30));
      ReferenceOps().swiglu({acc.total.data(), acc.total.data() + channels, acc.stride, kTokens,
                             channels, gate.on_host(), up.on_host(), multiplier, sigmoid_shift,
                             product_shift, block, out.on_host(), expected.planes(),
                             scratch.data()});
      std::string difference = LaunchError(device.kernels().swiglu(
          {acc.view(), kTokens, channels, gate.on_device(), up.on_device(), multiplier,
           sigmoid_shift, product_shift, block, out.on_device(), actual.planes()},
          device.stream()));
      if (difference.empty()) difference = actual.Compare(expected, kTokens, channels);
      if (!difference.empty()) return At(difference, channels, 1000 * block + round);
    }
  }
  return "";
}

// Every int16 gate through the table.
std::string EveryGateCase(CaseDevice& device) {
  constexpr int32_t kChannels = 65536;
  Aligned<int32_t> acc(2 * kChannels), scratch(kChannels);
  Aligned<int16_t> ones(kChannels), twos(kChannels);
  for (int32_t c = 0; c < kChannels; ++c) {
    acc[c] = c - 32768;
    acc[kChannels + c] = 2;
    ones[c] = 1;
    twos[c] = 2;
  }
  DeviceArray<int32_t> device_acc(device, acc);
  DeviceArray<int16_t> device_ones(device, ones), device_twos(device, twos);
  Site expected(1, kChannels, true);
  DeviceSite actual(device, expected, /*poisoned=*/true);
  const NarrowParams host_twos{twos.data(), 0, 1}, host_out{ones.data(), 0, 1};
  ReferenceOps().swiglu({acc.data(), acc.data() + kChannels, 2 * kChannels, 1, kChannels, host_twos,
                         host_twos, 16384, 14, 1, 1, host_out, expected.planes(), scratch.data()});
  const NarrowParams device_in{device_twos.get(), 0, 1}, device_out{device_ones.get(), 0, 1};
  const Accumulators view = {.data = device_acc.get(), .stride = 2 * kChannels};
  const std::string error = LaunchError(device.kernels().swiglu(
      {view, 1, kChannels, device_in, device_in, 16384, 14, 1, 1, device_out, actual.planes()},
      device.stream()));
  return error.empty() ? actual.Compare(expected, 1, kChannels) : error;
}

std::span<const KernelCase> KernelCases() {
  static constexpr KernelCase kCases[] = {
      {"Gemm", GemmCase},
      {"GemmDeepest", GemmDeepestCase},
      {"Embed", EmbedCase},
      {"Residual", ResidualCase},
      {"GatherNorm", GatherNormCase},
      {"Rotate", RotateCase},
      {"SwiGlu", SwiGluCase},
      {"EveryGate", EveryGateCase},
      {"Logits", LogitsCase},
      {"Attention", AttentionCase},
      {"AttentionLong", AttentionLongCase},
      {"AttentionExtremes", AttentionExtremesCase},
      {"Sample", SampleCase},
      {"SampleExtremes", SampleExtremesCase},
      {"SampleLargest", SampleLargestCase},
  };
  return kCases;
}

}  // namespace fixpoint
