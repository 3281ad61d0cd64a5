// Cases of what stands between the qkv layer and o_proj.
#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/case_data.h"
#include "kernels/reference/reference_ops.h"

namespace fixpoint {
namespace {

// Cache of both sides: the reference's layout on the host, ours as the kernels should write it.
struct CachePair {
  CachePair(int32_t blocks, int32_t kv_heads, int32_t head_dim)
      : kv_heads(kv_heads),
        head_dim(head_dim),
        // More than the heads need, as other layers lie in between.
        block_stride(static_cast<size_t>(kv_heads) * 2 * kKvBlockTokens * head_dim + 64),
        reference(static_cast<size_t>(blocks) * block_stride),
        ours(reference.size()) {
    std::memset(reference.data(), 0x5a, reference.size());
    std::memset(ours.data(), 0x5a, ours.size());
  }

  // Tokens [first, first + tokens) of a sequence from rows of k and v.
  void Write(const Aligned<int8_t>& k, const Aligned<int8_t>& v, size_t stride, int32_t tokens,
             int32_t first, const int32_t* table) {
    ReferenceOps().kv_write({k.data(),
                             v.data(),
                             stride,
                             tokens,
                             kv_heads,
                             head_dim,
                             first,
                             table,
                             {reference.data(), block_stride}});
    for (int32_t t = 0; t < tokens; ++t) {
      const int32_t slot = (first + t) % kKvBlockTokens;
      for (int32_t head = 0; head < kv_heads; ++head) {
        int8_t* tile = ours.data() +
                       static_cast<size_t>(table[(first + t) / kKvBlockTokens]) * block_stride +
                       static_cast<size_t>(head) * 2 * kKvBlockTokens * head_dim;
        for (int32_t d = 0; d < head_dim; ++d) {
          const size_t from = static_cast<size_t>(t) * stride + head * head_dim + d;
          tile[CudaKIndex(slot, d, head_dim)] = k[from];
          tile[CudaVIndex(slot, d, head_dim)] = v[from];
        }
      }
    }
  }

  int32_t kv_heads, head_dim;
  size_t block_stride;
  Aligned<int8_t> reference, ours;
};

struct Heads {
  int32_t kv_heads, group, head_dim, prefix;
  bool wide;
  int32_t count() const { return kv_heads * group; }
};

struct Sequence {
  int32_t tokens, position;
};

enum class Values { kRandom, kLargestPositive, kLargestNegative, kPrefixFarAbove, kPrefixFarBelow };

ScoreParams RandomScore(Random& random) {
  ScoreParams s;
  s.a = static_cast<int32_t>(random.In(0, 15));
  s.c = static_cast<int32_t>(random.Extreme(1, 65535));
  s.n = static_cast<int32_t>(random.In(1, 30));
  const int64_t most = ((int64_t{INT32_MAX} - (int64_t{1} << (s.n - 1))) / s.c - 1) << s.a;
  s.d_max = static_cast<int32_t>(std::clamp<int64_t>(most, 1, (1 << 30) - 1));
  if (random.In(0, 1) == 0) s = {.d_max = 1 << 20, .a = 6, .c = 40000, .n = 15};
  return s;
}

// Some sequences in one flat batch, their caches filled, and what the reference makes of them.
class Batch {
 public:
  Batch(const Heads& heads, std::vector<Sequence> sequences, uint64_t seed, Values values)
      : heads_(heads),
        sequences_(std::move(sequences)),
        random_(seed),
        tokens_(std::accumulate(sequences_.begin(), sequences_.end(), 0,
                                [](int32_t n, const Sequence& s) { return n + s.tokens; })),
        width_(heads.count() * heads.head_dim),
        q_stride_(RoundUp(static_cast<size_t>(width_), 64)),
        q_(static_cast<size_t>(tokens_) * q_stride_),
        prefix_k_(static_cast<size_t>(heads.kv_heads) * heads.prefix * heads.head_dim),
        prefix_v_(prefix_k_.size()),
        multipliers_(static_cast<size_t>(width_)),
        scores_(static_cast<size_t>(heads.count())),
        tables_(CountBlocks()),
        cache_(static_cast<int32_t>(tables_.size()), heads.kv_heads, heads.head_dim),
        expected_(tokens_, width_, heads.wide) {
    random_.Fill(q_, -127, 127);
    random_.Fill(prefix_k_, -32767, 32767);
    random_.Fill(prefix_v_, -32767, 32767);
    random_.Fill(multipliers_, 1, 32767);
    for (size_t i = 0; i < scores_.size(); ++i) scores_[i] = RandomScore(random_);
    requantize_k_ = static_cast<int32_t>(random_.In(12, 24));
    SetValues(values);
    std::iota(tables_.data(), tables_.data() + tables_.size(), 0);
    for (size_t i = tables_.size() - 1; i > 0; --i) {
      std::swap(tables_[i], tables_[static_cast<size_t>(random_.In(0, static_cast<int64_t>(i)))]);
    }
    FillCaches(values);
    for (size_t i = 0; i < sequences_.size(); ++i) RunReference(i);
  }

  std::string Compare(CaseDevice& device, bool decode, int32_t split_blocks) {
    DeviceArray<int8_t> q(device, q_), cache(device, cache_.ours);
    DeviceArray<int16_t> prefix_k(device, prefix_k_), prefix_v(device, prefix_v_),
        multipliers(device, multipliers_);
    DeviceArray<ScoreParams> scores(device, scores_);
    DeviceArray<int32_t> tables(device, tables_);
    DeviceSite out(device, expected_, /*poisoned=*/true);
    int32_t score_keys = 0, most_blocks = 0, most_rows = 0;
    Aligned<AttentionTile> tiles = Tiles(decode ? kDecodeRows : PrefillRows(heads_.head_dim));
    for (size_t i = 0; i < tiles.size(); ++i) {
      tiles[i].score_begin = score_keys;
      tiles[i].score_blocks = TileBlocks(tiles[i]);
      score_keys += tiles[i].score_blocks * kKvBlockTokens;
      most_blocks = std::max(most_blocks, tiles[i].score_blocks);
      most_rows = std::max(most_rows, tiles[i].tokens * tiles[i].heads);
    }
    DeviceArray<AttentionTile> device_tiles(device, tiles);
    const CudaAttentionArgs args = {.q = q.get(),
                                    .q_stride = q_stride_,
                                    .num_heads = heads_.count(),
                                    .kv_heads = heads_.kv_heads,
                                    .head_dim = heads_.head_dim,
                                    .tiles = device_tiles.get(),
                                    .num_tiles = static_cast<int32_t>(tiles.size()),
                                    .block_tables = tables.get(),
                                    .cache = {cache.get(), cache_.block_stride},
                                    .prefix_k = prefix_k.get(),
                                    .prefix_v = prefix_v.get(),
                                    .prefix_tokens = heads_.prefix,
                                    .scores = scores.get(),
                                    .requantize = {multipliers.get(), 0, requantize_k_},
                                    .out = out.planes()};
    int error = 0;
    if (!decode) {
      error = device.kernels().attend_prefill(args, device.stream());
    } else {
      const int32_t splits = (most_blocks + split_blocks - 1) / split_blocks;
      const size_t parts = tiles.size() * static_cast<size_t>(heads_.kv_heads) *
                           static_cast<size_t>(splits) * kDecodeRows;
      DeviceArray<int32_t> score_memory(device, static_cast<size_t>(heads_.kv_heads) *
                                                    static_cast<size_t>(score_keys) *
                                                    static_cast<size_t>(most_rows));
      DeviceArray<int32_t> maxima(device, parts), denominators(device, parts),
          sums(device, parts * static_cast<size_t>(heads_.head_dim));
      error = device.kernels().attend_decode({.attention = args,
                                              .split_blocks = split_blocks,
                                              .splits = splits,
                                              .row_stride = most_rows,
                                              .score_keys = score_keys,
                                              .scores = score_memory.get(),
                                              .maxima = maxima.get(),
                                              .denominators = denominators.get(),
                                              .sums = sums.get()},
                                             device.stream());
      // The memory must live until the kernels are done.
      if (error == 0) maxima.Read();
    }
    if (error != 0) return LaunchError(error);
    const std::string difference = out.Compare(expected_, tokens_, width_);
    if (difference.empty()) return "";
    return std::string(decode ? "decode" : "prefill") + ", " + std::to_string(heads_.kv_heads) +
           " kv heads, group " + std::to_string(heads_.group) + ", head_dim " +
           std::to_string(heads_.head_dim) + ", prefix " + std::to_string(heads_.prefix) +
           ", first sequence " + std::to_string(sequences_[0].tokens) + " at " +
           std::to_string(sequences_[0].position) + ": " + difference;
  }

 private:
  static int32_t BlocksOf(const Sequence& s) {
    return (s.position + s.tokens - 1) / kKvBlockTokens + 1;
  }
  size_t CountBlocks() const {
    size_t blocks = 0;
    for (const Sequence& s : sequences_) blocks += static_cast<size_t>(BlocksOf(s));
    return blocks;
  }
  int32_t TableBegin(size_t sequence) const {
    int32_t begin = 0;
    for (size_t i = 0; i < sequence; ++i) begin += BlocksOf(sequences_[i]);
    return begin;
  }
  int32_t TokenBegin(size_t sequence) const {
    int32_t begin = 0;
    for (size_t i = 0; i < sequence; ++i) begin += sequences_[i].tokens;
    return begin;
  }

  void SetValues(Values values) {
    if (values == Values::kRandom) return;
    std::memset(q_.data(), 127, q_.size());
    const bool far = values == Values::kPrefixFarAbove || values == Values::kPrefixFarBelow;
    const int32_t sign = values == Values::kPrefixFarBelow ? -1 : 1;
    const int32_t v_sign = values == Values::kLargestNegative ? -1 : 1;
    for (size_t i = 0; i < prefix_k_.size(); ++i) {
      prefix_k_[i] = static_cast<int16_t>(far ? sign * 32767 : 127);
      prefix_v_[i] = static_cast<int16_t>(v_sign * 32767);
    }
  }

  void FillCaches(Values values) {
    const auto stride = static_cast<size_t>(heads_.kv_heads * heads_.head_dim);
    for (size_t i = 0; i < sequences_.size(); ++i) {
      const int32_t keys = sequences_[i].position + sequences_[i].tokens;
      Aligned<int8_t> k(static_cast<size_t>(keys) * stride), v(k.size());
      random_.Fill(k, -127, 127);
      random_.Fill(v, -127, 127);
      if (values == Values::kLargestPositive || values == Values::kLargestNegative) {
        std::memset(k.data(), 127, k.size());
        std::memset(v.data(), values == Values::kLargestPositive ? 127 : -127, v.size());
      }
      cache_.Write(k, v, stride, keys, 0, tables_.data() + TableBegin(i));
    }
  }

  void RunReference(size_t i) {
    const auto token = static_cast<size_t>(TokenBegin(i));
    const Sequence& s = sequences_[i];
    Aligned<int32_t> scratch(static_cast<size_t>(s.position + s.tokens + heads_.prefix));
    ActivationPlanes out = expected_.planes();
    out.hi += token * out.stride;
    if (out.lo != nullptr) out.lo += token * out.stride;
    ReferenceOps().attention({q_.data() + token * q_stride_,
                              q_stride_,
                              s.tokens,
                              s.position,
                              heads_.count(),
                              heads_.kv_heads,
                              heads_.head_dim,
                              0,
                              heads_.kv_heads,
                              {cache_.reference.data(), cache_.block_stride},
                              tables_.data() + TableBegin(i),
                              prefix_k_.data(),
                              prefix_v_.data(),
                              heads_.prefix,
                              scores_.data(),
                              {multipliers_.data(), 0, requantize_k_},
                              out,
                              scratch.data()});
  }

  Aligned<AttentionTile> Tiles(int32_t max_rows) const {
    int32_t count = 0;
    for (const Sequence& s : sequences_) count += CountTiles(s.tokens, heads_.group, max_rows);
    Aligned<AttentionTile> tiles(static_cast<size_t>(count));
    int32_t made = 0;
    for (size_t i = 0; i < sequences_.size(); ++i) {
      made +=
          MakeTiles({TokenBegin(i), sequences_[i].tokens, sequences_[i].position, TableBegin(i)},
                    heads_.group, max_rows, tiles.data() + made);
    }
    if (made != count) std::abort();
    return tiles;
  }

  Heads heads_;
  std::vector<Sequence> sequences_;
  Random random_;
  int32_t tokens_, width_;
  size_t q_stride_;
  Aligned<int8_t> q_;
  Aligned<int16_t> prefix_k_, prefix_v_, multipliers_;
  Aligned<ScoreParams> scores_;
  Aligned<int32_t> tables_;
  CachePair cache_;
  Site expected_;
  int32_t requantize_k_ = 12;
};

std::string CompareBoth(CaseDevice& device, Batch batch, int32_t split_blocks) {
  const std::string difference = batch.Compare(device, /*decode=*/false, split_blocks);
  return difference.empty() ? batch.Compare(device, /*decode=*/true, split_blocks) : difference;
}

}  // namespace

// rotate_heads, narrow and kv_write of the reference against the one kernel that does all three.
std::string RotateCase(CaseDevice& device) {
  Random random(7);
  constexpr int32_t kTokens = 5, kBlocks = 4, kRounds = 8;
  for (const int32_t head_dim : {16, 32, 48, 80, 128, 256}) {
    for (int32_t round = 0; round < kRounds; ++round) {
      const int32_t kv_heads = static_cast<int32_t>(random.In(1, 2));
      const int32_t num_heads = kv_heads * static_cast<int32_t>(random.In(1, 3));
      const int32_t q_width = num_heads * head_dim, kv_width = kv_heads * head_dim;
      AccumulatorData acc(device, random, kTokens, q_width + 2 * kv_width, round);
      NarrowData q_before(device, random, q_width, round),
          q_after(device, random, q_width, (round + 2) % kRounds),
          k_before(device, random, kv_width, round),
          k_after(device, random, kv_width, (round + 2) % kRounds),
          v(device, random, kv_width, round);
      constexpr int32_t kPrefix = 3, kPositions = kPrefix + kBlocks * kKvBlockTokens;
      Aligned<int16_t> cos(static_cast<size_t>(kPositions) * head_dim / 2), sin(cos.size());
      random.Fill(cos, -16384, 16384);
      random.Fill(sin, -16384, 16384);
      const bool hadamard = (head_dim & (head_dim - 1)) == 0 && round % 2 == 0;
      Aligned<int32_t> positions(kTokens), blocks(kTokens), table(kBlocks);
      for (int32_t b = 0; b < kBlocks; ++b) table[b] = kBlocks - 1 - b;
      for (int32_t t = 0; t < kTokens; ++t) {  // all different, on both sides of a border
        positions[t] = 61 * t + static_cast<int32_t>(random.In(0, 2));
        blocks[t] = table[positions[t] / kKvBlockTokens];
      }
      const size_t q_stride = RoundUp(static_cast<size_t>(q_width), 64),
                   kv_stride = static_cast<size_t>(kv_width);
      Aligned<int8_t> q(kTokens * q_stride), k(kTokens * kv_stride), values(k.size());
      std::memset(q.data(), 0x5a, q.size());
      CachePair cache(kBlocks, kv_heads, head_dim);
      DeviceArray<int8_t> device_cache(device, cache.ours);
      for (int32_t t = 0; t < kTokens; ++t) {
        const int32_t* row = acc.total.data() + t * acc.stride;
        const size_t angle = static_cast<size_t>(kPrefix + positions[t]) * head_dim / 2;
        RotateHeadsArgs args{row,
                             acc.stride,
                             1,
                             num_heads,
                             head_dim,
                             q_before.on_host(),
                             cos.data() + angle,
                             sin.data() + angle,
                             static_cast<size_t>(head_dim / 2),
                             hadamard,
                             q_after.on_host(),
                             q.data() + t * q_stride,
                             q_stride};
        ReferenceOps().rotate_heads(args);
        args.acc = row + q_width;
        args.heads = kv_heads;
        args.before = k_before.on_host();
        args.after = k_after.on_host();
        args.out = k.data();
        ReferenceOps().rotate_heads(args);
        ReferenceOps().narrow({row + q_width + kv_width, acc.stride, 1, kv_width, v.on_host(),
                               values.data(), kv_stride});
        cache.Write(k, values, kv_stride, 1, positions[t], table.data());
      }
      DeviceArray<int16_t> device_cos(device, cos), device_sin(device, sin);
      DeviceArray<int32_t> device_positions(device, positions), device_blocks(device, blocks);
      DeviceArray<int8_t> device_q(device, q.size());
      std::string difference =
          LaunchError(device.kernels().rotate({.acc = acc.view(),
                                               .tokens = kTokens,
                                               .num_heads = num_heads,
                                               .kv_heads = kv_heads,
                                               .head_dim = head_dim,
                                               .q_before = q_before.on_device(),
                                               .q_after = q_after.on_device(),
                                               .k_before = k_before.on_device(),
                                               .k_after = k_after.on_device(),
                                               .v = v.on_device(),
                                               .cos = device_cos.get(),
                                               .sin = device_sin.get(),
                                               .rope_begin = kPrefix,
                                               .hadamard = hadamard,
                                               .positions = device_positions.get(),
                                               .blocks = device_blocks.get(),
                                               .q = device_q.get(),
                                               .q_stride = q_stride,
                                               .cache = {device_cache.get(), cache.block_stride}},
                                              device.stream()));
      if (difference.empty()) difference = Compare(q, device_q.Read());
      if (difference.empty()) difference = Compare(cache.ours, device_cache.Read());
      if (!difference.empty()) {
        return "head_dim " + std::to_string(head_dim) + ", round " + std::to_string(round) + ": " +
               difference;
      }
    }
  }
  return "";
}

// Groups beyond the rows of a tile, all head sizes, block borders, batches of unlike lengths.
std::string AttentionCase(CaseDevice& device) {
  uint64_t seed = 0;
  for (const int32_t group : {1, 3, 4, 8, 9, 40}) {
    for (const int32_t head_dim : {16, 64, 80, 128, 192, 256}) {
      if (group > 8 && head_dim > 80) continue;
      ++seed;
      const Heads heads{group > 8 ? 1 : 2, group, head_dim, static_cast<int32_t>(seed % 5) * 4,
                        seed % 2 == 0};
      const auto shift = static_cast<int32_t>(seed % 7);
      const std::string difference =
          CompareBoth(device,
                      Batch(heads, {{1, 62 + shift}, {5, 0}, {1, 0}, {9, 122 + shift}, {1, 260}},
                            seed, Values::kRandom),
                      1 + static_cast<int32_t>(seed % 3));
      if (!difference.empty()) return difference;
    }
  }
  for (const int32_t position : {0, 1, 15, 16, 62, 63, 64, 65, 127, 128}) {
    const std::string difference = CompareBoth(
        device, Batch({1, 2, 32, 1, false}, {{1 + position % 5, position}}, 99, Values::kRandom),
        1);
    if (!difference.empty()) return difference;
  }
  return "";
}

// More keys than sums in int32 could take.
std::string AttentionLongCase(CaseDevice& device) {
  return CompareBoth(device,
                     Batch({1, 2, 16, 1, true}, {{2, 3000}, {1, 1023}}, 11, Values::kRandom),
                     kMaxSplitBlocks);
}

// The largest sums of numerators and values; a prefix that takes all of the weight, or none.
std::string AttentionExtremesCase(CaseDevice& device) {
  for (const Values values : {Values::kLargestPositive, Values::kLargestNegative,
                              Values::kPrefixFarAbove, Values::kPrefixFarBelow}) {
    const std::string difference = CompareBoth(
        device, Batch({1, 2, 16, 4, true}, {{1, 2500}, {2, 40}}, 12, values), kMaxSplitBlocks);
    if (!difference.empty()) return difference;
  }
  return "";
}

}  // namespace fixpoint
