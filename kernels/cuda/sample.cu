// Rows of logits to tokens: one block a row. With d = largest logit - logit (so falling logit is
// rising d), every filter of engine/sampler.h keeps the tokens nearer than some border and, of
// those at the border, the first few ids. top_k and top_p find theirs by digits of d, from the
// highest: counts and sums of weights by digit say which digit the border has. The draw cuts the
// row into as many parts as the block has warps and goes on in the part that it falls into. Nothing
// is sorted.
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/rows.cuh"

namespace fixpoint::FIXPOINT_CUDA_NAMESPACE {
namespace {

constexpr int32_t kWarps = 32;
constexpr int32_t kThreads = 32 * kWarps;
constexpr int32_t kDigitBits = 8;
constexpr int32_t kDigits = 1 << kDigitBits;
constexpr int32_t kDistanceBits = 31;
constexpr uint32_t kNoBorder = 0xffffffffu;  // farther than any distance

FIXPOINT_CONSTANT uint32_t kExp2Table[kExp2Entries] = {
#include "kernels/reference/exp2_table.inc"
};

// Of a set of tokens.
struct Tally {
  uint64_t count = 0;
  uint64_t sum = 0;  // of weights, below 2^51
  FIXPOINT_DEVICE void Add(const Tally& other) {
    count += other.count;
    sum += other.sum;
  }
};

// Which tokens are kept: those nearer than `distance`, and the first `ties` ids at it.
struct Border {
  uint32_t distance = kNoBorder;
  uint32_t ties = 0;
};

// The part of the row that the draw falls into.
struct Range {
  int32_t begin, end;
  uint64_t draw;  // of the kept weights from `begin` on
  uint32_t ties;  // to keep, of those from `begin` on
};

struct Shared {
  int64_t largest[kWarps];
  Tally parts[kWarps];
  Tally nearer;  // than the digit that holds the border
  Range range;
  uint32_t digit;  // that one
  // By digit; a sum in two halves, as there is no 64-bit addition to shared memory that does not
  // try again and again.
  uint32_t counts[kDigits], sums_low[kDigits], sums_high[kDigits];
  // Lanes look up different entries: constant memory would serve them one after the other.
  uint32_t exp2[kExp2Entries];
};

struct Row {
  const int32_t* logits;
  int32_t vocab;
  int32_t max_logit;
  ExpScale scale;
  Shared& shared;

  FIXPOINT_DEVICE uint32_t Distance(int32_t id) const {
    return static_cast<uint32_t>(max_logit) - static_cast<uint32_t>(logits[id]);
  }
  FIXPOINT_DEVICE uint32_t Weight(uint32_t distance) const {
    return SamplingWeight(distance, scale, shared.exp2);
  }
};

// The largest logit in the upper half, over 2^31 - 1 - id: the lowest id on ties.
FIXPOINT_DEVICE int64_t Largest(const int32_t* logits, int32_t vocab, int64_t* shared) {
  int64_t largest = INT64_MIN;
  for (int32_t id = ThreadX(); id < vocab; id += kThreads) {
    largest = MaxOf{}(largest, (int64_t{logits[id]} << 32) + (INT32_MAX - id));
  }
  return CombineBlock<kWarps>(largest, shared, MaxOf{});
}
FIXPOINT_DEVICE int32_t LogitOf(int64_t largest) { return static_cast<int32_t>(largest >> 32); }
FIXPOINT_DEVICE int32_t IdOf(int64_t largest) {
  return INT32_MAX - static_cast<int32_t>(largest & INT32_MAX);
}

// Where the highest digit of a distance with a weight above zero begins: weights never rise with
// the distance.
FIXPOINT_DEVICE int32_t HighestShift(const Row& row) {
  int32_t bits = kDistanceBits;
  while (bits > 1 && row.Weight(uint32_t{1} << (bits - 1)) == 0) --bits;
  return (bits - 1) / kDigitBits * kDigitBits;
}

// Counts and sums of the tokens with a weight by their digit at `shift`, of those that agree with
// `distance` in all digits above. The digits have been read by one warp, before the last barrier.
FIXPOINT_DEVICE void TallyDigits(const Row& row, uint32_t distance, int32_t shift) {
  Shared& s = row.shared;
  for (int32_t i = ThreadX(); i < kDigits; i += kThreads) {
    s.counts[i] = s.sums_low[i] = s.sums_high[i] = 0;
  }
  SyncThreads();
  for (int32_t id = ThreadX(); id < row.vocab; id += kThreads) {
    const uint32_t d = row.Distance(id);
    if (d >> shift >> kDigitBits != distance >> shift >> kDigitBits) continue;
    const uint32_t weight = row.Weight(d);
    if (weight == 0) continue;
    const uint32_t digit = d >> shift & (kDigits - 1);
    FetchAddShared(&s.counts[digit], 1);
    const uint32_t before = FetchAddShared(&s.sums_low[digit], weight);
    if (before + weight < before) FetchAddShared(&s.sums_high[digit], 1);
  }
  SyncThreads();
}

FIXPOINT_DEVICE Tally TallyOf(const Shared& s, int32_t digit) {
  return {s.counts[digit], static_cast<uint64_t>(s.sums_high[digit]) << 32 | s.sums_low[digit]};
}

// Of all digits.
FIXPOINT_DEVICE Tally TallyOfAll(const Shared& s) {
  Tally all;
  for (int32_t i = Lane(); i < kDigits; i += 32) all.Add(TallyOf(s, i));
  FIXPOINT_UNROLL
  for (int32_t mask = 16; mask > 0; mask /= 2) {
    all.count += static_cast<uint64_t>(ShuffleXor64(static_cast<int64_t>(all.count), mask));
    all.sum += static_cast<uint64_t>(ShuffleXor64(static_cast<int64_t>(all.sum), mask));
  }
  return all;
}

// What the running tally of the order is compared with.
struct Goal {
  bool by_sum;
  uint64_t value;
  FIXPOINT_DEVICE bool ReachedBy(const Tally& tally) const {
    return (by_sum ? tally.sum : tally.count) >= value;
  }
};

// The first digit up to which the goal is reached, by the first warp, for all to read behind the
// next barrier. Requires that all digits together reach it.
FIXPOINT_DEVICE void FindDigit(Shared& s, const Goal& goal, Tally nearer) {
  constexpr int32_t kPart = kDigits / 32;
  Tally part;
  for (int32_t i = 0; i < kPart; ++i) part.Add(TallyOf(s, Lane() * kPart + i));
  s.parts[Lane()] = part;
  SyncWarp();
  int32_t digit = 0;
  for (const int32_t last = kDigits - kPart; digit < last; digit += kPart) {
    Tally with = nearer;
    with.Add(s.parts[digit / kPart]);
    if (goal.ReachedBy(with)) break;
    nearer = with;
  }
  for (const int32_t last = digit + kPart - 1; digit < last; ++digit) {
    Tally with = nearer;
    with.Add(TallyOf(s, digit));
    if (goal.ReachedBy(with)) break;
    nearer = with;
  }
  if (Lane() != 0) return;
  s.digit = static_cast<uint32_t>(digit);
  s.nearer = nearer;
}

// A distance, and what all tokens nearer than it come to.
struct Place {
  uint32_t distance = 0;
  Tally nearer;
};

// The distance of the token with which the goal is reached. The highest digits are tallied already.
FIXPOINT_DEVICE Place FindPlace(const Row& row, int32_t shift, const Goal& goal) {
  Place place;
  for (;; shift -= kDigitBits) {
    if (Warp() == 0) FindDigit(row.shared, goal, place.nearer);
    SyncThreads();
    place.distance |= row.shared.digit << shift;
    place.nearer = row.shared.nearer;
    if (shift == 0) return place;
    TallyDigits(row, place.distance, shift - kDigitBits);
  }
}

// What top_k and top_p leave. Tokens of weight zero are not looked at: no sum and no draw knows
// them.
FIXPOINT_DEVICE Border FindBorder(const Row& row, const CudaSampleRow& choice) {
  Border border;
  const bool filters_by_p = choice.top_p_q16 < 65536;
  if (choice.top_k == 0 && !filters_by_p) return border;
  const int32_t shift = HighestShift(row);
  TallyDigits(row, 0, shift);
  Tally kept = TallyOfAll(row.shared);
  const auto top_k = static_cast<uint64_t>(choice.top_k);
  if (top_k > 0 && kept.count > top_k) {
    const Place place = FindPlace(row, shift, {false, top_k});
    border = {place.distance, static_cast<uint32_t>(top_k - place.nearer.count)};
    kept = {top_k, place.nearer.sum + uint64_t{border.ties} * row.Weight(place.distance)};
    if (filters_by_p) TallyDigits(row, 0, shift);
  }
  if (!filters_by_p) return border;
  // Tokens behind top_k's border are tallied too, but the goal is reached at the border at the
  // latest, and there within the ties that top_k keeps.
  const uint64_t goal = TopPTarget(kept.sum, choice.top_p_q16);
  const Place place = FindPlace(row, shift, {true, goal});
  const uint64_t weight = row.Weight(place.distance);
  const uint64_t ties = LongDivide{}(goal - place.nearer.sum + weight - 1, weight);
  return {place.distance, static_cast<uint32_t>(ties)};
}

// Which tokens have a part in the draw, and with how much.
struct Kept {
  Border border;
  uint32_t least;       // weight, min_p's
  uint32_t tie_weight;  // of a token at the border; 0: they are below `least`
};

// Of this warp's part of [begin, end): the count of ties, and the sum of what is nearer.
FIXPOINT_DEVICE void TallyPart(const Row& row, const Kept& kept, int32_t begin, int32_t end) {
  Tally tally;
  for (int32_t id = begin + Lane(); id < end; id += 32) {
    const uint32_t d = row.Distance(id);
    if (d > kept.border.distance) continue;
    if (d == kept.border.distance) {
      ++tally.count;
      continue;
    }
    const uint32_t weight = row.Weight(d);
    if (weight >= kept.least) tally.sum += weight;
  }
  FIXPOINT_UNROLL
  for (int32_t mask = 16; mask > 0; mask /= 2) {
    tally.count += static_cast<uint64_t>(ShuffleXor64(static_cast<int64_t>(tally.count), mask));
    tally.sum += static_cast<uint64_t>(ShuffleXor64(static_cast<int64_t>(tally.sum), mask));
  }
  if (Lane() == 0) row.shared.parts[Warp()] = tally;
}

// The kept weights of a part, of whose ties at most `ties` are kept.
FIXPOINT_DEVICE uint64_t SumOfPart(const Tally& part, const Kept& kept, uint32_t ties) {
  return part.sum + (part.count < ties ? part.count : ties) * kept.tie_weight;
}

// Goes on to the part, of `length` tokens, that the draw falls into.
FIXPOINT_DEVICE void Narrow(const Shared& s, const Kept& kept, int32_t length, Range* range) {
  int32_t part = 0;
  for (; part < kWarps - 1; ++part) {
    const uint64_t sum = SumOfPart(s.parts[part], kept, range->ties);
    if (range->draw < sum) break;
    range->draw -= sum;
    const uint64_t count = s.parts[part].count;
    range->ties -= count < range->ties ? static_cast<uint32_t>(count) : range->ties;
  }
  range->begin += part * length;
  const int32_t end = range->begin + length;
  range->end = end < range->end ? end : range->end;
}

// The first token, in rising id, at which the running sum of kept weights exceeds the draw.
FIXPOINT_DEVICE int32_t Draw(const Row& row, const Kept& kept, uint64_t random) {
  Shared& s = row.shared;
  Range range = {0, row.vocab, 0, kept.border.ties};
  for (bool first = true;; first = false) {
    const int32_t length = (range.end - range.begin + kWarps - 1) / kWarps;
    const int32_t begin = range.begin + Warp() * length;
    const int32_t end = begin + length;
    TallyPart(row, kept, begin, end < range.end ? end : range.end);
    SyncThreads();
    if (Warp() == 0) {
      if (first) {
        Tally all;
        for (int32_t part = 0; part < kWarps; ++part) all.Add(s.parts[part]);
        range.draw = DrawBelow(SumOfPart(all, kept, range.ties), random);
      }
      Narrow(s, kept, length, &range);
      if (Lane() == 0) s.range = range;
    }
    SyncThreads();
    range = s.range;
    if (length == 1) return range.begin;
  }
}

FIXPOINT_DEVICE int32_t DrawToken(const CudaSampleArgs& args, const CudaSampleRow& choice,
                                  const int32_t* logits, int32_t max_logit, Shared& shared) {
  for (int32_t i = ThreadX(); i < kExp2Entries; i += kThreads) shared.exp2[i] = kExp2Table[i];
  SyncThreads();
  const Row row = {logits, args.vocab, max_logit, choice.scale, shared};
  Kept kept = {FindBorder(row, choice), choice.min_p_q16 << 15, 0};
  if (kept.border.distance != kNoBorder) {
    const uint32_t weight = row.Weight(kept.border.distance);
    if (weight >= kept.least) kept.tie_weight = weight;
  }
  return Draw(row, kept, choice.random);
}

FIXPOINT_KERNEL(kThreads, 1) SampleKernel(const CudaSampleArgs args) {
  FIXPOINT_SHARED(memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int32_t r = BlockX();
  const CudaSampleRow choice = args.choices[r];
  int32_t token = -1;
  if (choice.kind != SampleKind::kNothing) {
    const int32_t* logits = args.logits + static_cast<size_t>(r) * args.vocab;
    const int64_t largest = Largest(logits, args.vocab, shared.largest);
    token = choice.kind == SampleKind::kGreedy
                ? IdOf(largest)
                : DrawToken(args, choice, logits, LogitOf(largest), shared);
  }
  if (ThreadX() == 0) args.tokens[r] = token;
}

}  // namespace

int Sample(const CudaSampleArgs& args, CudaStream* stream) {
  return Launch(SampleKernel, {static_cast<uint32_t>(args.rows)}, kThreads, sizeof(Shared), stream,
                args);
}

}  // namespace fixpoint::FIXPOINT_CUDA_NAMESPACE
