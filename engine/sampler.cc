#include "engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "engine/philox.h"

namespace fixpoint {
namespace {

// 2^31 * 2^(-i/256), rounded to nearest.
constexpr uint32_t kExp2Table[kExp2Entries] = {
#include "kernels/reference/exp2_table.inc"
};

constexpr uint64_t kLog2E_Q30 = 1549082005;  // log2(e) * 2^30
constexpr uint64_t kLn2_Q31 = 1488522236;    // ln(2) * 2^31
constexpr int32_t kLogSumBits = 40;  // fraction bits of the weights that a log-sum-exp adds up

// Below this many candidates a sort is cheaper than another round of halving.
constexpr int32_t kSortedTail = 64;

constexpr uint64_t RoundShiftUnsigned(uint64_t x, int32_t n) {
  return n == 0 ? x : (x + (uint64_t{1} << (n - 1))) >> n;
}

// A type of this file's own keeps the standard algorithms below from being shared with code built
// by other flags.
struct FallingOrder {
  bool operator()(const SampleCandidate& a, const SampleCandidate& b) const {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  }
};

uint32_t Distance(int32_t max_logit, int32_t logit) {
  return static_cast<uint32_t>(max_logit) - static_cast<uint32_t>(logit);
}

// The tokens that top_k and top_p leave: those not behind `last` in falling order.
struct Kept {
  SampleCandidate last = {INT32_MIN, INT32_MAX};
  bool Has(int32_t logit, int32_t id) const { return !FallingOrder{}(last, {logit, id}); }
};

// Calls visit(id) for the allowed tokens in rising id. The words of a grammar's mask are mostly
// empty or mostly full, so empty ones are left at once.
template <typename Visit>
void ForEachAllowed(const uint32_t* allowed, int32_t vocab_size, Visit visit) {
  for (int32_t first = 0; first < vocab_size; first += 32) {
    uint32_t word = allowed[first / 32];
    if (vocab_size - first < 32) word &= (uint32_t{1} << (vocab_size - first)) - 1;
    for (; word != 0; word &= word - 1) visit(first + std::countr_zero(word));
  }
}

// Argmax of the allowed tokens, -1 when there are none.
int32_t ArgmaxAllowed(const int32_t* logits, int32_t vocab_size, const uint32_t* allowed) {
  int32_t best = -1;
  ForEachAllowed(allowed, vocab_size, [&](int32_t id) {
    if (best < 0 || logits[id] > logits[best]) best = id;
  });
  return best;
}

uint64_t SumWeights(const SampleCandidate* begin, const SampleCandidate* end,
                    const uint32_t* weights) {
  uint64_t sum = 0;
  for (; begin != end; ++begin) sum += weights[begin->id];
  return sum;
}

// Length of the shortest beginning, in falling order, whose weights reach `target`; it is the
// beginning of `candidates` afterwards. Halves the part that holds the border, so the expected work
// is linear. Requires that all of them reach it.
int32_t ShortestPrefix(SampleCandidate* candidates, int32_t count, uint64_t target,
                       const uint32_t* weights) {
  int32_t low = 0, high = count;  // the border is in (low, high]
  uint64_t before = 0;            // sum over [0, low)
  while (high - low > kSortedTail) {
    const int32_t middle = low + (high - low) / 2;
    std::nth_element(candidates + low, candidates + middle, candidates + high, FallingOrder());
    const uint64_t sum = SumWeights(candidates + low, candidates + middle, weights);
    if (before + sum >= target) {
      high = middle;
    } else {
      before += sum;
      low = middle;
    }
  }
  std::sort(candidates + low, candidates + high, FallingOrder());
  while (low < high) {
    before += weights[candidates[low++].id];
    if (before >= target) break;
  }
  return low;
}

// Tokens by the bit width of their weight. Weights fall with the logits, so the tokens of a larger
// width come before all of a smaller one, and only the width that holds a border must be sorted.
// Width 0 is weight zero: such a token changes no sum and is never drawn.
struct Widths {
  static constexpr int32_t kCount = 33;
  int32_t counts[kCount] = {};
  uint64_t sums[kCount] = {};

  Widths(const uint32_t* weights, int32_t vocab_size) {
    for (int32_t id = 0; id < vocab_size; ++id) {
      const int width = std::bit_width(weights[id]);
      ++counts[width];
      sums[width] += weights[id];
    }
  }
};

// The tokens of one width.
int32_t Gather(const int32_t* logits, int32_t vocab_size, int32_t width, const SamplerScratch& s) {
  int32_t count = 0;
  for (int32_t id = 0; id < vocab_size; ++id) {
    if (static_cast<int32_t>(std::bit_width(s.weights[id])) == width)
      s.candidates[count++] = {logits[id], id};
  }
  return count;
}

Kept ApplyTopKAndTopP(const int32_t* logits, int32_t vocab_size, const SamplingParams& params,
                      const SamplerScratch& s) {
  Kept kept;
  Widths widths(s.weights, vocab_size);
  int32_t gathered = 0;  // width of the candidates in s, 0: none yet
  if (params.top_k > 0) {
    int32_t left = params.top_k, width = Widths::kCount - 1;
    for (; width > 0 && widths.counts[width] < left; --width) left -= widths.counts[width];
    if (width > 0) {  // else there are fewer tokens than top_k
      const int32_t count = Gather(logits, vocab_size, width, s);
      std::nth_element(s.candidates, s.candidates + left - 1, s.candidates + count, FallingOrder());
      kept.last = s.candidates[left - 1];
      gathered = width;
      widths.counts[width] = left;
      widths.sums[width] = SumWeights(s.candidates, s.candidates + left, s.weights);
      std::fill_n(widths.sums, width, uint64_t{0});
    }
  }
  if (params.top_p_q16 < 65536) {
    uint64_t sum = 0;
    for (const uint64_t part : widths.sums) sum += part;
    uint64_t target = TopPTarget(sum, params.top_p_q16);
    int32_t width = Widths::kCount - 1;
    for (; widths.sums[width] < target; --width) target -= widths.sums[width];
    if (width != gathered) Gather(logits, vocab_size, width, s);
    const int32_t count = ShortestPrefix(s.candidates, widths.counts[width], target, s.weights);
    kept.last = s.candidates[count - 1];
  }
  return kept;
}

}  // namespace

ExpScale MakeExpScale(uint32_t inverse_temperature_q16, int32_t logit_fraction_bits) {
  const uint64_t product = inverse_temperature_q16 * kLog2E_Q30;  // below 2^63
  const int32_t shift = logit_fraction_bits + 16 + 30 - 24;
  const int32_t width = static_cast<int32_t>(std::bit_width(product));
  const int32_t drop = std::min(std::max(width - 32, 0), shift - 1);
  const uint64_t c = RoundShiftUnsigned(product, drop);
  // Beyond 32 bits only with n == 1: any distance is then far past the last weight, with the
  // smaller factor as well.
  return {std::min<uint64_t>(c, 0xffffffffu), shift - drop};
}

uint32_t SamplingWeight(uint32_t distance, const ExpScale& scale) {
  return SamplingWeight(distance, scale, kExp2Table);
}

int32_t Argmax(const int32_t* logits, int32_t vocab_size) {
  int32_t best = logits[0];
  for (int32_t id = 1; id < vocab_size; ++id) best = logits[id] > best ? logits[id] : best;
  int32_t id = 0;
  while (logits[id] != best) ++id;
  return id;
}

int32_t SampleToken(const int32_t* logits, int32_t vocab_size, int32_t logit_fraction_bits,
                    const SamplingParams& params, uint64_t position, const SamplerScratch& scratch,
                    const uint32_t* allowed) {
  const int32_t best =
      allowed == nullptr ? Argmax(logits, vocab_size) : ArgmaxAllowed(logits, vocab_size, allowed);
  if (params.inverse_temperature_q16 == 0 || best < 0) return best;
  const ExpScale scale = MakeExpScale(params.inverse_temperature_q16, logit_fraction_bits);
  const int32_t max_logit = logits[best];
  uint32_t* const weights = scratch.weights;
  const auto weigh = [&](int32_t id) {
    weights[id] = SamplingWeight(Distance(max_logit, logits[id]), scale);
  };
  if (allowed == nullptr) {
    for (int32_t id = 0; id < vocab_size; ++id) weigh(id);
  } else {
    // Weight zero: no filter counts such a token and no draw reaches it.
    std::memset(weights, 0, static_cast<size_t>(vocab_size) * sizeof(*weights));
    ForEachAllowed(allowed, vocab_size, weigh);
  }
  const bool ranked = params.top_k > 0 || params.top_p_q16 < 65536;
  const Kept kept = ranked ? ApplyTopKAndTopP(logits, vocab_size, params, scratch) : Kept{};
  const uint32_t least = params.min_p_q16 << 15;
  uint64_t total = 0;
  for (int32_t id = 0; id < vocab_size; ++id) {
    if (weights[id] < least || !kept.Has(logits[id], id)) weights[id] = 0;
    total += weights[id];
  }
  return TokenAtDraw(weights, DrawBelow(total, TokenRandomBits(params.seed, position)));
}

int32_t TokenAtDraw(const uint32_t* weights, uint64_t draw) {
  uint64_t sum = 0;
  int32_t id = 0;
  while ((sum += weights[id]) <= draw) ++id;
  return id;
}

namespace {

// log2(x) with 24 fraction bits, truncated: the fraction's bits come from squaring the mantissa
// again and again. Each squaring truncates by less than 2^-31 and its error counts half as much in
// each following bit: below 2^-29 in all. x >= 1.
uint64_t Log2Q24(uint64_t x) {
  const int32_t width = static_cast<int32_t>(std::bit_width(x));
  uint64_t mantissa = width > 32 ? x >> (width - 32) : x << (32 - width);  // [2^31, 2^32)
  uint64_t result = static_cast<uint64_t>(width - 1);
  for (int32_t bit = 0; bit < 24; ++bit) {
    mantissa = (mantissa * mantissa) >> 31;  // [2^31, 2^33)
    const uint64_t carry = mantissa >> 32;
    mantissa >>= carry;
    result = result << 1 | carry;
  }
  return result;
}

}  // namespace

LogNormalizer ComputeLogNormalizer(const int32_t* logits, int32_t vocab_size,
                                   int32_t logit_fraction_bits) {
  LogNormalizer normalizer;
  normalizer.logit_fraction_bits = logit_fraction_bits;
  normalizer.max_logit = logits[Argmax(logits, vocab_size)];
  const ExpScale scale = MakeExpScale(65536, logit_fraction_bits);
  uint64_t sum = 0;  // below 2^20 * 2^40
  for (int32_t id = 0; id < vocab_size; ++id) {
    const uint64_t y = ScaledDistance(Distance(normalizer.max_logit, logits[id]), scale);
    const uint64_t whole = y >> 24;
    if (whole > kLogSumBits + 1) continue;
    sum += RoundShiftUnsigned(uint64_t{Exp2Fraction(y, kExp2Table)} << (kLogSumBits - 31),
                              static_cast<int32_t>(whole));
  }
  const uint64_t log2_q24 = Log2Q24(sum) - (uint64_t{kLogSumBits} << 24);  // [0, 20] units
  normalizer.log_sum_q30 = static_cast<int64_t>(RoundShiftUnsigned(log2_q24 * kLn2_Q31, 25));
  return normalizer;
}

int32_t LogprobQ16(const LogNormalizer& normalizer, int32_t logit) {
  const uint64_t distance = Distance(normalizer.max_logit, logit);  // below 2^31
  const uint64_t distance_q30 = distance << (30 - normalizer.logit_fraction_bits);
  const uint64_t magnitude =
      RoundShiftUnsigned(distance_q30 + static_cast<uint64_t>(normalizer.log_sum_q30), 14);
  return -static_cast<int32_t>(std::min<uint64_t>(magnitude, 0x7fffffffu));
}

int32_t TopTokens(const int32_t* logits, int32_t vocab_size, int32_t count, SampleCandidate* top) {
  const FallingOrder before;
  int32_t filled = 0;
  for (int32_t id = 0; id < vocab_size; ++id) {
    const SampleCandidate candidate = {logits[id], id};
    if (filled == count && (count == 0 || !before(candidate, top[count - 1]))) continue;
    int32_t place = filled < count ? filled++ : count - 1;
    for (; place > 0 && before(candidate, top[place - 1]); --place) top[place] = top[place - 1];
    top[place] = candidate;
  }
  return filled;
}

}  // namespace fixpoint
