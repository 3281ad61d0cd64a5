// Everything between the matrix products, 8 channels at a time; what is left of a row goes one by
// one by the rules of arithmetic.h. The formulas are those of ops.h; comments here say only where a
// vector form differs from the words there and why it gives the same bits.
#include "kernels/cpu/neon.h"
#include "kernels/cpu/neon_common.h"

namespace fixpoint::neon {
namespace {

// Transforms of consecutive blocks of `block` values, block a power of two, n a multiple of it.
void Hadamard(int32_t* x, int32_t n, int32_t block) {
  if (block < 4) {
    for (int32_t i = 0; i < n; i += block) WalshHadamard(x + i, block);
    return;
  }
  for (int32_t i = 0; i < n; i += 4) {
    int32x4_t v = vld1q_s32(x + i);
    const int32x4_t neighbour = vrev64q_s32(v);  // lanes 1 0 3 2
    v = vtrn1q_s32(vaddq_s32(v, neighbour), vsubq_s32(v, neighbour));
    const int32x4_t other = vextq_s32(v, v, 2);  // lanes 2 3 0 1
    vst1q_s32(x + i,
              vcombine_s32(vget_low_s32(vaddq_s32(v, other)), vget_low_s32(vsubq_s32(v, other))));
  }
  for (int32_t half = 4; half < block; half *= 2) {
    for (int32_t i = 0; i < n; i += 2 * half) {
      for (int32_t j = i; j < i + half; j += 4) {
        const int32x4_t a = vld1q_s32(x + j), b = vld1q_s32(x + j + half);
        vst1q_s32(x + j, vaddq_s32(a, b));
        vst1q_s32(x + j + half, vsubq_s32(a, b));
      }
    }
  }
}

// The table's entry and the next one for 8 indices of 7 bits.
struct Entries {
  explicit FIXPOINT_INLINE Entries(int16x8_t index) {
    int16_t at[8];
    vst1q_s16(at, index);
    int32_t pairs[8];
    for (int i = 0; i < 8; ++i) __builtin_memcpy(&pairs[i], kSigmoidTable + at[i], 4);
    const int16x8_t a = vreinterpretq_s16_s32(vld1q_s32(pairs));
    const int16x8_t b = vreinterpretq_s16_s32(vld1q_s32(pairs + 4));
    entry = vuzp1q_s16(a, b);
    next = vuzp2q_s16(a, b);
  }
  int16x8_t entry, next;
};

// silu of 8 gates within int16. sqrdmulh(a, b) is rs(a * b, 15) for all that comes here.
struct VectorSilu {
  explicit FIXPOINT_INLINE VectorSilu(const SwiGluArgs& args)
      : multiplier(vdupq_n_s16(static_cast<int16_t>(args.sigmoid_multiplier))),
        scale(args.sigmoid_shift) {}
  FIXPOINT_INLINE int16x8_t operator()(int16x8_t gate) const {
    const int16x8_t magnitude = vabsq_s16(gate);
    const int16x8_t i = Saturate16(scale(Multiply(magnitude, multiplier)));
    const Entries table(vshrq_n_s16(i, 8));
    const int16x8_t fraction = vandq_s16(i, vdupq_n_s16(255));
    // rs(step * fraction, 8) = rs(step * (128 * fraction), 15)
    const int16x8_t w = vaddq_s16(
        table.entry, vqrdmulhq_s16(vsubq_s16(table.next, table.entry), vshlq_n_s16(fraction, 7)));
    const int16x8_t r = vqrdmulhq_s16(magnitude, w);
    return vbslq_s16(vcgezq_s16(gate), vsubq_s16(magnitude, r), vnegq_s16(r));
  }
  int16x8_t multiplier;
  Round scale;
};

// The product of silu(gate) and up, before the transform, to args.scratch.
void SwiGluProducts(const SwiGluArgs& args, const int32_t* gate, const int32_t* up) {
  const NarrowParams &g = args.gate_requantize, &u = args.up_requantize;
  const VectorNarrow narrow_gate(g), narrow_up(u);
  const VectorSilu silu(args);
  const Round product(args.product_shift);
  int32_t c = 0;
  for (; c + 8 <= args.channels; c += 8) {
    const int16x8_t y = silu(Saturate16(narrow_gate(Load8(gate + c), c)));
    const int16x8_t x = Saturate16(narrow_up(Load8(up + c), c));
    Store8(args.scratch + c, Clamp8(product(Multiply(y, x)), kProductLimit));
  }
  for (; c < args.channels; ++c) {
    const int32_t y = Silu(Sat16(Narrow(gate[c], g.p, g.multipliers[c], g.k)),
                           args.sigmoid_multiplier, args.sigmoid_shift);
    const int32_t x = Sat16(Narrow(up[c], u.p, u.multipliers[c], u.k));
    args.scratch[c] = Clamp(RoundShift(y * x, args.product_shift), kProductLimit);
  }
}

// narrow(v) of `channels` channels to a site whose row begins at `offset`.
void NarrowRow(const NarrowParams& params, const int32_t* v, int32_t channels, int8_t* hi,
               int8_t* lo, size_t offset) {
  const VectorNarrow narrow(params);
  int32_t c = 0;
  for (; c + 8 <= channels; c += 8) {
    StoreSite(narrow(Load8(v + c), c), hi, lo, offset + static_cast<size_t>(c));
  }
  for (; c < channels; ++c) {
    StoreActivation(Narrow(v[c], params.p, params.multipliers[c], params.k), hi + offset + c,
                    lo == nullptr ? nullptr : lo + offset + c);
  }
}

// RoPE and both requantizations of one head through `x`, head_dim values of working space.
void RotateHead(const RotateHeadsArgs& args, const int32_t* acc, const int16_t* cos,
                const int16_t* sin, int32_t channel, int32_t* x, int8_t* out) {
  const int32_t half = args.head_dim / 2;
  const NarrowParams &first = args.before,
                     second{args.after.multipliers + channel, args.after.p, args.after.k};
  const VectorNarrow before(first);
  // sqrshrn: rs(., 14), then saturated to 16 bits. The sums of two products fit int32.
  const auto round = [](int32x4_t low, int32x4_t high) __attribute__((always_inline)) {
    const int16x8_t u = vqrshrn_high_n_s32(vqrshrn_n_s32(low, 14), high, 14);
    return vmaxq_s16(u, vdupq_n_s16(-32767));
  };
  const auto store = [](int32_t * to, int16x8_t u) __attribute__((always_inline)) {
    Store8(to, {vmovl_s16(vget_low_s16(u)), vmovl_high_s16(u)});
  };
  int32_t i = 0;
  for (; i + 8 <= half; i += 8) {
    const int16x8_t a = Saturate16(before(Load8(acc + i), channel + i));
    const int16x8_t b = Saturate16(before(Load8(acc + half + i), channel + half + i));
    const int16x8_t c = vld1q_s16(cos + i), s = vld1q_s16(sin + i);
    const Eight ac = Multiply(a, c), bc = Multiply(b, c);
    store(x + i, round(vmlsl_s16(ac.low, vget_low_s16(b), vget_low_s16(s)),
                       vmlsl_high_s16(ac.high, b, s)));
    store(x + half + i, round(vmlal_s16(bc.low, vget_low_s16(a), vget_low_s16(s)),
                              vmlal_high_s16(bc.high, a, s)));
  }
  for (; i < half; ++i) {
    const int32_t a = Sat16(Narrow(acc[i], first.p, first.multipliers[channel + i], first.k));
    const int32_t b =
        Sat16(Narrow(acc[half + i], first.p, first.multipliers[channel + half + i], first.k));
    x[i] = Sat16(RoundShift(a * cos[i] - b * sin[i], 14));
    x[half + i] = Sat16(RoundShift(b * cos[i] + a * sin[i], 14));
  }
  if (args.hadamard) Hadamard(x, args.head_dim, args.head_dim);
  NarrowRow(second, x, args.head_dim, out, nullptr, 0);
}

// rs(h, input_shift) within the limit, for 4 channels.
struct NormInput {
  explicit FIXPOINT_INLINE NormInput(int32_t shift) : round(shift) {}
  FIXPOINT_INLINE int32x4_t operator()(const int32_t* h) const {
    return Clamp32(round(vld1q_s32(h)), kNormInputLimit);
  }
  Round round;
};

int32_t LargestMagnitude(const int32_t* h, int32_t n) {
  int32x4_t largest = vdupq_n_s32(0);
  int32_t j = 0;
  for (; j + 4 <= n; j += 4) largest = vmaxq_s32(largest, vabsq_s32(vld1q_s32(h + j)));
  int32_t most = vmaxvq_s32(largest);
  for (; j < n; ++j) {
    const int32_t magnitude = h[j] < 0 ? -h[j] : h[j];
    most = magnitude > most ? magnitude : most;
  }
  return most;
}

uint64_t SumOfSquares(const int32_t* h, int32_t n, int32_t shift) {
  const NormInput input(shift);
  int64x2_t sum = vdupq_n_s64(0);
  int32_t j = 0;
  for (; j + 4 <= n; j += 4) {
    const int32x4_t x = input(h + j);
    sum = vmlal_high_s32(vmlal_s32(sum, vget_low_s32(x), vget_low_s32(x)), x, x);
  }
  int64_t total = vaddvq_s64(sum);
  for (; j < n; ++j) {
    const int64_t x = Clamp(RoundShift(h[j], shift), kNormInputLimit);
    total += x * x;
  }
  return static_cast<uint64_t>(total);
}

void NormRow(const RmsNormArgs& args, const int32_t* h, size_t offset) {
  const int32_t shift = NormInputShift(LargestMagnitude(h, args.hidden));
  const InverseRoot root =
      InverseSquareRoot((args.epsilon >> (2 * shift)) + SumOfSquares(h, args.hidden, shift));
  const int32_t unit_shift = root.shift - args.fraction_bits;
  const NormInput input(shift);
  const ScaleWide scale(unit_shift, 32767);
  const int32x4_t inverse = vdupq_n_s32(static_cast<int32_t>(root.inverse));
  const Round last(args.k);
  int32_t j = 0;
  for (; j + 8 <= args.hidden; j += 8) {
    const Eight unit{scale(input(h + j), inverse), scale(input(h + j + 4), inverse)};
    StoreSite(last(Multiply(Saturate16(unit), vld1q_s16(args.multipliers + j))), args.out.hi,
              args.out.lo, offset + static_cast<size_t>(j));
  }
  for (; j < args.hidden; ++j) {
    const int64_t x = Clamp(RoundShift(h[j], shift), kNormInputLimit);
    const auto unit =
        static_cast<int32_t>(Clamp<int64_t>(RoundShift64(x * root.inverse, unit_shift), 32767));
    StoreActivation(RoundShift(unit * args.multipliers[j], args.k), args.out.hi + offset + j,
                    args.out.lo == nullptr ? nullptr : args.out.lo + offset + j);
  }
}

// clamp(base + rs64(v * m, n), +-limit); |base| is within the limit or zero.
FIXPOINT_INLINE int32_t WideLane(int32_t base, int32_t v, int32_t m, int32_t n, int32_t limit) {
  return static_cast<int32_t>(Clamp<int64_t>(base + Wide(v, m, n), limit));
}

}  // namespace

void Embed(const EmbedArgs& args) {
  const int32_t n = args.requantize.n;
  const ScaleWide scale(n, kResidualLimit);
  for (int32_t t = 0; t < args.tokens; ++t) {
    const int32_t id = args.token_ids[t];
    const int8_t* row = args.table + static_cast<size_t>(id) * args.hidden;
    int32_t* h = args.h + static_cast<size_t>(t) * args.hidden;
    const int32_t multiplier = args.requantize.multipliers[id];
    const int32x4_t m = vdupq_n_s32(multiplier);
    int32_t j = 0;
    for (; j + 8 <= args.hidden; j += 8) {
      const int16x8_t x = vmovl_s8(vld1_s8(row + j));
      Store8(h + j, scale({vmovl_s16(vget_low_s16(x)), vmovl_high_s16(x)}, {m, m}));
    }
    for (; j < args.hidden; ++j) h[j] = WideLane(0, row[j], multiplier, n, kResidualLimit);
  }
}

void RmsNorm(const RmsNormArgs& args) {
  for (int32_t t = 0; t < args.tokens; ++t) {
    NormRow(args, args.h + static_cast<size_t>(t) * args.hidden,
            static_cast<size_t>(t) * args.out.stride);
  }
}

void RotateHeads(const RotateHeadsArgs& args) {
  int32_t x[512];  // head_dim of any model is far below
  for (int32_t t = 0; t < args.tokens; ++t) {
    const size_t angle = static_cast<size_t>(t) * args.rope_stride;
    for (int32_t head = 0; head < args.heads; ++head) {
      const int32_t channel = head * args.head_dim;
      RotateHead(args, args.acc + static_cast<size_t>(t) * args.acc_stride + channel,
                 args.cos + angle, args.sin + angle, channel, x,
                 args.out + static_cast<size_t>(t) * args.out_stride + channel);
    }
  }
}

void NarrowRows(const NarrowArgs& args) {
  for (int32_t t = 0; t < args.tokens; ++t) {
    NarrowRow(args.requantize, args.acc + static_cast<size_t>(t) * args.acc_stride, args.channels,
              args.out, nullptr, static_cast<size_t>(t) * args.out_stride);
  }
}

void ResidualAdd(const ResidualAddArgs& args) {
  // |h| is within the limit, so what is added may be clamped to twice the limit beforehand.
  static_assert(int64_t{3} * kResidualLimit < INT32_MAX);
  const int32_t* m = args.requantize.multipliers;
  const int32_t n = args.requantize.n;
  const ScaleWide scale(n, 2 * kResidualLimit);
  for (int32_t t = 0; t < args.tokens; ++t) {
    const int32_t* acc = args.acc + static_cast<size_t>(t) * args.acc_stride;
    int32_t* h = args.h + static_cast<size_t>(t) * args.hidden;
    int32_t j = 0;
    for (; j + 4 <= args.hidden; j += 4) {
      const int32x4_t x = scale(vld1q_s32(acc + j), vld1q_s32(m + j));
      vst1q_s32(h + j, Clamp32(vaddq_s32(vld1q_s32(h + j), x), kResidualLimit));
    }
    for (; j < args.hidden; ++j) h[j] = WideLane(h[j], acc[j], m[j], n, kResidualLimit);
  }
}

void SwiGlu(const SwiGluArgs& args) {
  for (int32_t t = 0; t < args.tokens; ++t) {
    const size_t row = static_cast<size_t>(t) * args.acc_stride;
    SwiGluProducts(args, args.gate + row, args.up + row);
    Hadamard(args.scratch, args.channels, args.hadamard_block);
    NarrowRow(args.out_requantize, args.scratch, args.channels, args.out.hi, args.out.lo,
              static_cast<size_t>(t) * args.out.stride);
  }
}

void Logits(const LogitsArgs& args) {
  const int32_t* m = args.requantize.multipliers;
  const int32_t n = args.requantize.n;
  const ScaleWide scale(n, kLogitLimit);
  for (int32_t t = 0; t < args.tokens; ++t) {
    const int32_t* acc = args.acc + static_cast<size_t>(t) * args.acc_stride;
    int32_t* logits = args.logits + static_cast<size_t>(t) * args.logits_stride;
    int32_t c = args.column_begin;
    for (; c + 4 <= args.column_end; c += 4) {
      vst1q_s32(logits + c, scale(vld1q_s32(acc + c), vld1q_s32(m + c)));
    }
    for (; c < args.column_end; ++c) logits[c] = WideLane(0, acc[c], m[c], n, kLogitLimit);
  }
}

}  // namespace fixpoint::neon
