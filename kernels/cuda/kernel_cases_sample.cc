// Cases of the kernel that chooses tokens, against the rules of engine/sampler.h taken literally:
// all tokens sorted, every filter a loop. (engine/cuda_sample_test.cc compares with the CPU's
// sampler itself.)
#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/cuda/case_data.h"
#include "kernels/cuda/kernel_cases.h"
#include "kernels/reference/sampling.h"

namespace fixpoint {
namespace {

constexpr uint32_t kExp2Table[kExp2Entries] = {
#include "kernels/reference/exp2_table.inc"
};

// The tokens of a row in falling logit, rising id, with their weights.
struct SortedRow {
  SortedRow(const int32_t* logits, int32_t vocab, const ExpScale& scale)
      : ids(static_cast<size_t>(vocab)), weights(static_cast<size_t>(vocab)) {
    std::iota(ids.begin(), ids.end(), 0);
    std::stable_sort(ids.begin(), ids.end(),
                     [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    for (int32_t id = 0; id < vocab; ++id) {
      const auto distance = static_cast<uint32_t>(logits[ids[0]] - logits[id]);
      weights[static_cast<size_t>(id)] = SamplingWeight(distance, scale, kExp2Table);
    }
  }
  uint64_t Weight(size_t rank) const { return weights[static_cast<size_t>(ids[rank])]; }
  std::vector<int32_t> ids;
  std::vector<uint32_t> weights;  // by id
};

int32_t ReferenceToken(const int32_t* logits, int32_t vocab, const CudaSampleRow& choice) {
  if (choice.kind == SampleKind::kNothing) return -1;
  if (choice.kind == SampleKind::kGreedy) {
    return static_cast<int32_t>(std::max_element(logits, logits + vocab) - logits);
  }
  SortedRow row(logits, vocab, choice.scale);
  size_t kept = row.ids.size();
  if (choice.top_k > 0) kept = std::min(kept, static_cast<size_t>(choice.top_k));
  using Wide = unsigned __int128;
  Wide sum = 0, reached = 0;
  for (size_t i = 0; i < kept; ++i) sum += row.Weight(i);
  size_t border = 0;
  while (reached * 65536 < sum * choice.top_p_q16) reached += row.Weight(border++);
  kept = border;
  while (row.Weight(kept - 1) < uint64_t{choice.min_p_q16} << 15) --kept;
  for (size_t i = kept; i < row.ids.size(); ++i) row.weights[static_cast<size_t>(row.ids[i])] = 0;
  const Wide total = std::accumulate(row.weights.begin(), row.weights.end(), Wide{0});
  const Wide draw = (total * choice.random) >> 64;
  size_t id = 0;
  for (Wide running = row.weights[0]; running <= draw; running += row.weights[id]) ++id;
  return static_cast<int32_t>(id);
}

std::string CompareRows(CaseDevice& device, const Aligned<int32_t>& logits, int32_t vocab,
                        const Aligned<CudaSampleRow>& choices) {
  const auto rows = static_cast<int32_t>(choices.size());
  Aligned<int32_t> expected(choices.size());
  for (int32_t r = 0; r < rows; ++r) {
    expected[r] = ReferenceToken(logits.data() + static_cast<size_t>(r) * vocab, vocab, choices[r]);
  }
  DeviceArray<int32_t> device_logits(device, logits), tokens(device, expected.size());
  DeviceArray<CudaSampleRow> device_choices(device, choices);
  const std::string error = LaunchError(device.kernels().sample(
      {device_logits.get(), rows, vocab, device_choices.get(), tokens.get()}, device.stream()));
  return error.empty() ? Compare(expected, tokens.Read()) : error;
}

ExpScale RandomScale(Random& random) {
  // From weights that are equal far away to one that is alone, in a rising number of bits.
  return {.c = static_cast<uint64_t>(random.In(1, 0xffffffff)) >> random.In(0, 31),
          .n = static_cast<int32_t>(random.In(1, 40))};
}

CudaSampleRow RandomChoice(Random& random, int32_t vocab) {
  CudaSampleRow choice = {.kind = SampleKind::kDraw, .scale = RandomScale(random)};
  if (random.In(0, 1) == 0) choice.top_k = static_cast<int32_t>(random.Extreme(1, vocab));
  if (random.In(0, 1) == 0) choice.top_p_q16 = static_cast<uint32_t>(random.Extreme(1, 65536));
  if (random.In(0, 2) == 0) choice.min_p_q16 = static_cast<uint32_t>(random.Extreme(0, 65536));
  choice.random =
      static_cast<uint64_t>(random.AnyInt32()) << 32 ^ static_cast<uint32_t>(random.AnyInt32());
  return choice;
}

// Few different logits, so that borders fall among ties; or logits all over; or all equal.
void FillRow(Random& random, int32_t* row, int32_t vocab) {
  constexpr int64_t kLargest = (int64_t{1} << 30) - 1;
  const int64_t step = int64_t{1} << random.In(0, 24);
  const int64_t different = random.In(0, 3) == 0 ? kLargest : random.In(0, 30);
  for (int32_t id = 0; id < vocab; ++id) {
    row[id] = static_cast<int32_t>(
        Clamp<int64_t>(random.In(-different, different) * (different > 30 ? 1 : step), kLargest));
  }
}

}  // namespace

std::string SampleCase(CaseDevice& device) {
  Random random(11);
  constexpr int32_t kRows = 12;
  for (const int32_t vocab : {1, 2, 31, 33, 300, 1023, 1024, 1025, 2500}) {
    for (int32_t round = 0; round < 8; ++round) {
      Aligned<int32_t> logits(static_cast<size_t>(kRows) * vocab);
      Aligned<CudaSampleRow> choices(kRows);
      for (int32_t r = 0; r < kRows; ++r) {
        FillRow(random, logits.data() + r * vocab, vocab);
        choices[r] = RandomChoice(random, vocab);
        if (r % 4 == 3) choices[r].kind = r == 3 ? SampleKind::kGreedy : SampleKind::kNothing;
      }
      const std::string difference = CompareRows(device, logits, vocab, choices);
      if (!difference.empty()) {
        return "vocab " + std::to_string(vocab) + ", round " + std::to_string(round) + ": " +
               difference;
      }
    }
  }
  return "";
}

// Every extreme of every parameter over rows that have one: all equal, one huge, the farthest two
// logits, a border between ties; and draws at both ends.
std::string SampleExtremesCase(CaseDevice& device) {
  constexpr int32_t kVocab = 77, kFar = (1 << 30) - 1;
  for (int32_t shape = 0; shape < 4; ++shape) {
    std::vector<CudaSampleRow> all = {{.kind = SampleKind::kGreedy}};
    for (const int32_t top_k : {0, 1, 40, kVocab - 1, kVocab, kVocab + 1}) {
      for (const uint32_t top_p : {1u, 32768u, 65535u, 65536u}) {
        for (const uint32_t min_p : {0u, 1u, 65536u}) {
          for (const uint64_t draw : {uint64_t{0}, uint64_t{1} << 63, ~uint64_t{0}}) {
            // The smallest and the largest inverse temperature, and one between.
            const ExpScale scale = top_k % 3 == 0   ? ExpScale{1549082005, 52}
                                   : top_k % 3 == 1 ? ExpScale{0xffffffff, 1}
                                                    : ExpScale{3098164010, 39};
            all.push_back({SampleKind::kDraw, top_k, top_p, min_p, scale, draw});
          }
        }
      }
    }
    Aligned<CudaSampleRow> choices(all.size());
    std::copy(all.begin(), all.end(), choices.data());
    Aligned<int32_t> logits(all.size() * kVocab);
    for (size_t i = 0; i < logits.size(); ++i) {
      const auto id = static_cast<int32_t>(i % kVocab);
      const int32_t shapes[] = {-kFar, id == 50 ? kFar : -kFar, id % 2 == 0 ? -kFar : 65536,
                                (id * 29 % kVocab) / 7 * 65536};
      logits[i] = shapes[shape];
    }
    const std::string difference = CompareRows(device, logits, kVocab, choices);
    if (!difference.empty()) return "shape " + std::to_string(shape) + ": " + difference;
  }
  return "";
}

// 2^20 tokens that all weigh 2^31: the largest sums there are, and a border far behind.
std::string SampleLargestCase(CaseDevice& device) {
  constexpr int32_t kVocab = 1 << 20;
  Aligned<int32_t> logits(kVocab);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = 12345;
  Aligned<CudaSampleRow> choice(1);
  choice[0] = {SampleKind::kDraw, kVocab - 2, 65535, 65536, {3098164010, 39}, ~uint64_t{0}};
  return CompareRows(device, logits, kVocab, choice);
}

}  // namespace fixpoint
