// This file is also compiled with -mgeneral-regs-only, where any floating-point or vector
// instruction is an error. So it includes nothing that mentions floating point.
#include "kernels/reference/reference_ops.h"

#include <cstring>

#include "kernels/reference/arithmetic.h"

namespace fixpoint {
namespace {

size_t PackedWeightBytes(int32_t outputs, int32_t depth) {
  return static_cast<size_t>(outputs) * static_cast<size_t>(depth);
}

void PackWeights(const int8_t* weights, int32_t /*outputs*/, int32_t depth, int32_t output_begin,
                 int32_t output_end, void* packed) {
  const size_t begin = static_cast<size_t>(output_begin) * depth;
  const size_t end = static_cast<size_t>(output_end) * depth;
  std::memcpy(static_cast<int8_t*>(packed) + begin, weights + begin, end - begin);
}

int32_t Dot(const int8_t* a, const int8_t* b, int32_t n) {
  int32_t sum = 0;
  for (int32_t i = 0; i < n; ++i) sum += int32_t{a[i]} * b[i];
  return sum;
}

void Linear(const LinearArgs& args) {
  const auto* weights = static_cast<const int8_t*>(args.packed);
  for (int32_t t = 0; t < args.tokens; ++t) {
    const size_t row = static_cast<size_t>(t) * args.x.stride;
    for (int32_t c = args.output_begin; c < args.output_end; ++c) {
      const int8_t* w = weights + static_cast<size_t>(c) * args.depth;
      int32_t acc = args.bias == nullptr ? 0 : args.bias[c];
      acc += Dot(args.x.hi + row, w, args.depth);
      if (args.x.lo != nullptr) acc += RoundShift(Dot(args.x.lo + row, w, args.depth), 8);
      args.acc[static_cast<size_t>(t) * args.acc_stride + (c - args.output_begin)] = acc;
    }
  }
}

void Embed(const EmbedArgs& args) {
  for (int32_t t = 0; t < args.tokens; ++t) {
    const int32_t id = args.token_ids[t];
    const int8_t* row = args.table + static_cast<size_t>(id) * args.hidden;
    int32_t* h = args.h + static_cast<size_t>(t) * args.hidden;
    for (int32_t j = 0; j < args.hidden; ++j) {
      h[j] = static_cast<int32_t>(Clamp<int64_t>(
          Wide(row[j], args.requantize.multipliers[id], args.requantize.n), kResidualLimit));
    }
  }
}

// Address of channel `c` of token `t` in one plane, or nullptr for the missing plane of an int8
// site.
int8_t* At(int8_t* plane, size_t stride, int32_t t, int32_t c) {
  return plane == nullptr ? nullptr : plane + static_cast<size_t>(t) * stride + c;
}

void RmsNorm(const RmsNormArgs& args) {
  for (int32_t t = 0; t < args.tokens; ++t) {
    const int32_t* h = args.h + static_cast<size_t>(t) * args.hidden;
    int32_t largest = 0;
    for (int32_t j = 0; j < args.hidden; ++j) {
      largest = h[j] > largest ? h[j] : -h[j] > largest ? -h[j] : largest;
    }
    const int32_t shift = NormInputShift(largest);
    const auto input = [&](int32_t j) {
      return int64_t{Clamp(RoundShift(h[j], shift), kNormInputLimit)};
    };
    uint64_t sum = args.epsilon >> (2 * shift);
    for (int32_t j = 0; j < args.hidden; ++j) sum += static_cast<uint64_t>(input(j) * input(j));
    const InverseRoot root = InverseSquareRoot(sum);
    for (int32_t j = 0; j < args.hidden; ++j) {
      const int64_t scaled = RoundShift64(input(j) * root.inverse, root.shift - args.fraction_bits);
      const auto unit = static_cast<int32_t>(Clamp<int64_t>(scaled, 32767));
      StoreActivation(RoundShift(unit * args.multipliers[j], args.k),
                      At(args.out.hi, args.out.stride, t, j),
                      At(args.out.lo, args.out.stride, t, j));
    }
  }
}

// One head: 16-bit values in, int8 out. `x` holds head_dim values and is used as working space.
void RotateHead(const RotateHeadsArgs& args, const int32_t* acc, const int16_t* cos,
                const int16_t* sin, int32_t first_channel, int8_t* out) {
  constexpr int32_t kPiece = 512;  // head_dim of any model is far below
  int32_t x[kPiece];
  const int32_t half = args.head_dim / 2;
  for (int32_t i = 0; i < args.head_dim; ++i) {
    x[i] = Sat16(
        Narrow(acc[i], args.before.p, args.before.multipliers[first_channel + i], args.before.k));
  }
  for (int32_t i = 0; i < half; ++i) {
    const int32_t a = x[i], b = x[i + half];
    x[i] = Sat16(RoundShift(a * cos[i] - b * sin[i], 14));
    x[i + half] = Sat16(RoundShift(b * cos[i] + a * sin[i], 14));
  }
  if (args.hadamard) WalshHadamard(x, args.head_dim);
  for (int32_t i = 0; i < args.head_dim; ++i) {
    out[i] = static_cast<int8_t>(
        Sat8(Narrow(x[i], args.after.p, args.after.multipliers[first_channel + i], args.after.k)));
  }
}

void RotateHeads(const RotateHeadsArgs& args) {
  for (int32_t t = 0; t < args.tokens; ++t) {
    const size_t angle = static_cast<size_t>(t) * args.rope_stride;
    for (int32_t head = 0; head < args.heads; ++head) {
      const int32_t channel = head * args.head_dim;
      RotateHead(args, args.acc + static_cast<size_t>(t) * args.acc_stride + channel,
                 args.cos + angle, args.sin + angle, channel,
                 args.out + static_cast<size_t>(t) * args.out_stride + channel);
    }
  }
}

void NarrowRows(const NarrowArgs& args) {
  for (int32_t t = 0; t < args.tokens; ++t) {
    const int32_t* acc = args.acc + static_cast<size_t>(t) * args.acc_stride;
    int8_t* out = args.out + static_cast<size_t>(t) * args.out_stride;
    for (int32_t c = 0; c < args.channels; ++c) {
      out[c] = static_cast<int8_t>(Sat8(
          Narrow(acc[c], args.requantize.p, args.requantize.multipliers[c], args.requantize.k)));
    }
  }
}

// The K tile of one kv head in the block that holds cache position `position`; its V tile follows.
int8_t* KTile(const KvLayer& cache, const int32_t* block_table, int32_t position, int32_t head,
              int32_t head_dim) {
  return cache.base +
         static_cast<size_t>(block_table[position / kKvBlockTokens]) * cache.block_stride +
         static_cast<size_t>(head) * 2 * kKvBlockTokens * head_dim;
}

void KvWrite(const KvWriteArgs& args) {
  for (int32_t t = 0; t < args.tokens; ++t) {
    const int32_t position = args.position + t;
    const int32_t slot = position % kKvBlockTokens;
    for (int32_t head = 0; head < args.kv_heads; ++head) {
      int8_t* k_tile = KTile(args.cache, args.block_table, position, head, args.head_dim);
      int8_t* v_tile = k_tile + static_cast<size_t>(kKvBlockTokens) * args.head_dim;
      const size_t row =
          static_cast<size_t>(t) * args.stride + static_cast<size_t>(head) * args.head_dim;
      for (int32_t d = 0; d < args.head_dim; ++d) {
        k_tile[KTileIndex(slot, d, args.head_dim)] = args.k[row + d];
        v_tile[VTileIndex(slot, d, args.head_dim)] = args.v[row + d];
      }
    }
  }
}

size_t AttentionScratchBytes(int32_t /*max_tokens*/, int32_t max_keys, int32_t /*num_heads*/,
                             int32_t /*kv_heads*/, int32_t /*head_dim*/) {
  return static_cast<size_t>(max_keys) *
         sizeof(int32_t);  // the scores, later the numerators, of one row
}

// Keys are numbered prefix first, then the cache positions.
struct KeyReader {
  const AttentionArgs& args;
  int32_t kv_head;

  int32_t Key(int32_t j, int32_t d) const {
    if (j < args.prefix_tokens) return args.prefix_k[PrefixIndex(j, d)];
    const int32_t position = j - args.prefix_tokens;
    return Tile(position)[KTileIndex(position % kKvBlockTokens, d, args.head_dim)];
  }
  int32_t Value(int32_t j, int32_t d) const {
    if (j < args.prefix_tokens) return args.prefix_v[PrefixIndex(j, d)];
    const int32_t position = j - args.prefix_tokens;
    return Tile(position)[static_cast<size_t>(kKvBlockTokens) * args.head_dim +
                          VTileIndex(position % kKvBlockTokens, d, args.head_dim)];
  }

 private:
  size_t PrefixIndex(int32_t j, int32_t d) const {
    return (static_cast<size_t>(kv_head) * args.prefix_tokens + j) * args.head_dim + d;
  }
  const int8_t* Tile(int32_t position) const {
    return KTile(args.cache, args.block_table, position, kv_head, args.head_dim);
  }
};

void AttendRow(const AttentionArgs& args, int32_t t, int32_t head) {
  const KeyReader keys{args, head / (args.num_heads / args.kv_heads)};
  const int32_t key_count = args.prefix_tokens + args.position + t + 1;
  const int32_t channel = head * args.head_dim;
  const int8_t* q = args.q + static_cast<size_t>(t) * args.q_stride + channel;
  auto* row = static_cast<int32_t*>(args.scratch);

  int32_t largest = INT32_MIN;
  for (int32_t j = 0; j < key_count; ++j) {
    int32_t score = 0;
    for (int32_t d = 0; d < args.head_dim; ++d) score += q[d] * keys.Key(j, d);
    row[j] = score;
    if (score > largest) largest = score;
  }
  uint64_t sum = 0;
  for (int32_t j = 0; j < key_count; ++j) {
    row[j] = SoftmaxNumerator(largest - row[j], args.scores[head]);
    sum += static_cast<uint64_t>(row[j]);
  }
  const SoftmaxReciprocal reciprocal = ReciprocalOfSum(sum);
  for (int32_t d = 0; d < args.head_dim; ++d) {
    int64_t weighted = 0;
    for (int32_t j = 0; j < key_count; ++j) weighted += int64_t{row[j]} * keys.Value(j, d);
    const int32_t mean = NormalizeWeighted(weighted, reciprocal);
    StoreActivation(Narrow(mean, args.requantize.p, args.requantize.multipliers[channel + d],
                           args.requantize.k),
                    At(args.out.hi, args.out.stride, t, channel + d),
                    At(args.out.lo, args.out.stride, t, channel + d));
  }
}

void Attention(const AttentionArgs& args) {
  const int32_t group = args.num_heads / args.kv_heads;
  for (int32_t t = 0; t < args.tokens; ++t) {
    for (int32_t head = args.kv_head_begin * group; head < args.kv_head_end * group; ++head) {
      AttendRow(args, t, head);
    }
  }
}

void ResidualAdd(const ResidualAddArgs& args) {
  for (int32_t t = 0; t < args.tokens; ++t) {
    const int32_t* acc = args.acc + static_cast<size_t>(t) * args.acc_stride;
    int32_t* h = args.h + static_cast<size_t>(t) * args.hidden;
    for (int32_t j = 0; j < args.hidden; ++j) {
      const int64_t sum = h[j] + Wide(acc[j], args.requantize.multipliers[j], args.requantize.n);
      h[j] = static_cast<int32_t>(Clamp<int64_t>(sum, kResidualLimit));
    }
  }
}

void SwiGlu(const SwiGluArgs& args) {
  const NarrowParams &gate = args.gate_requantize, &up = args.up_requantize,
                     &out = args.out_requantize;
  for (int32_t t = 0; t < args.tokens; ++t) {
    const size_t row = static_cast<size_t>(t) * args.acc_stride;
    for (int32_t c = 0; c < args.channels; ++c) {
      const int32_t g = Sat16(Narrow(args.gate[row + c], gate.p, gate.multipliers[c], gate.k));
      const int32_t u = Sat16(Narrow(args.up[row + c], up.p, up.multipliers[c], up.k));
      const int32_t y = Silu(g, args.sigmoid_multiplier, args.sigmoid_shift);
      args.scratch[c] = Clamp(RoundShift(y * u, args.product_shift), kProductLimit);
    }
    for (int32_t c = 0; c < args.channels; c += args.hadamard_block) {
      WalshHadamard(args.scratch + c, args.hadamard_block);
    }
    for (int32_t c = 0; c < args.channels; ++c) {
      StoreActivation(Narrow(args.scratch[c], out.p, out.multipliers[c], out.k),
                      At(args.out.hi, args.out.stride, t, c),
                      At(args.out.lo, args.out.stride, t, c));
    }
  }
}

void Logits(const LogitsArgs& args) {
  for (int32_t t = 0; t < args.tokens; ++t) {
    const int32_t* acc = args.acc + static_cast<size_t>(t) * args.acc_stride;
    int32_t* logits = args.logits + static_cast<size_t>(t) * args.logits_stride;
    for (int32_t c = args.column_begin; c < args.column_end; ++c) {
      const int64_t logit = Wide(acc[c], args.requantize.multipliers[c], args.requantize.n);
      logits[c] = static_cast<int32_t>(Clamp<int64_t>(logit, kLogitLimit));
    }
  }
}

constexpr Ops kReferenceOps = {
    "reference", PackedWeightBytes, PackWeights, Linear,  Embed,
    RmsNorm,     RotateHeads,       NarrowRows,  KvWrite, AttentionScratchBytes,
    Attention,   nullptr,           ResidualAdd, SwiGlu,  Logits,
    nullptr,
};

}  // namespace

const Ops& ReferenceOps() { return kReferenceOps; }

}  // namespace fixpoint
