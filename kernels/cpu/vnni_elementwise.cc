// Everything between the matrix products, 16 channels at a time. The formulas are those of ops.h;
// comments here say only where a vector form differs from the words there and why it gives the same
// bits.
#include "kernels/cpu/vnni.h"
#include "kernels/cpu/vnni_common.h"

namespace fixpoint::vnni {
namespace {

FIXPOINT_INLINE __m512i LoadInt32(const int32_t* p, __mmask16 mask) {
  return _mm512_maskz_loadu_epi32(mask, p);
}

// One stage of the transform inside a vector: lane i meets lane i ^ half.
template <int kHalf>
FIXPOINT_INLINE __m512i HadamardStage(__m512i v) {
  __m512i partner;
  __mmask16 upper;
  if constexpr (kHalf == 1) {
    partner = _mm512_shuffle_epi32(v, _MM_PERM_CDAB);
    upper = 0xaaaa;
  } else if constexpr (kHalf == 2) {
    partner = _mm512_shuffle_epi32(v, _MM_PERM_BADC);
    upper = 0xcccc;
  } else if constexpr (kHalf == 4) {
    partner = _mm512_shuffle_i64x2(v, v, 0xb1);
    upper = 0xf0f0;
  } else {
    partner = _mm512_shuffle_i64x2(v, v, 0x4e);
    upper = 0xff00;
  }
  return _mm512_mask_sub_epi32(_mm512_add_epi32(v, partner), upper, partner, v);
}

// Transforms of consecutive blocks of `block` values, block a power of two, n a multiple of it.
void Hadamard(int32_t* x, int32_t n, int32_t block) {
  if (block <= 1) return;
  for (int32_t i = 0; i < n; i += 16) {
    const __mmask16 mask = TailMask16(n - i);
    __m512i v = HadamardStage<1>(LoadInt32(x + i, mask));
    if (block >= 4) v = HadamardStage<2>(v);
    if (block >= 8) v = HadamardStage<4>(v);
    if (block >= 16) v = HadamardStage<8>(v);
    _mm512_mask_storeu_epi32(x + i, mask, v);
  }
  // From here n is a multiple of 32. Two stages a pass halve the trips through memory.
  int32_t half = 16;
  for (; 4 * half <= block; half *= 4) {
    for (int32_t i = 0; i < n; i += 4 * half) {
      for (int32_t j = i; j < i + half; j += 16) {
        const __m512i a = _mm512_loadu_si512(x + j), b = _mm512_loadu_si512(x + j + half);
        const __m512i c = _mm512_loadu_si512(x + j + 2 * half);
        const __m512i d = _mm512_loadu_si512(x + j + 3 * half);
        const __m512i ab = _mm512_add_epi32(a, b), ab_less = _mm512_sub_epi32(a, b);
        const __m512i cd = _mm512_add_epi32(c, d), cd_less = _mm512_sub_epi32(c, d);
        _mm512_storeu_si512(x + j, _mm512_add_epi32(ab, cd));
        _mm512_storeu_si512(x + j + half, _mm512_add_epi32(ab_less, cd_less));
        _mm512_storeu_si512(x + j + 2 * half, _mm512_sub_epi32(ab, cd));
        _mm512_storeu_si512(x + j + 3 * half, _mm512_sub_epi32(ab_less, cd_less));
      }
    }
  }
  if (2 * half <= block) {
    for (int32_t i = 0; i < n; i += 2 * half) {
      for (int32_t j = i; j < i + half; j += 16) {
        const __m512i a = _mm512_loadu_si512(x + j), b = _mm512_loadu_si512(x + j + half);
        _mm512_storeu_si512(x + j, _mm512_add_epi32(a, b));
        _mm512_storeu_si512(x + j + half, _mm512_sub_epi32(a, b));
      }
    }
  }
}

// Tables of the sigmoid: entries and their differences, 128 words each, looked up by the upper 7 of
// 15 bits.
struct SigmoidTable {
  FIXPOINT_INLINE SigmoidTable() {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      entries[i] = _mm512_loadu_si512(kSigmoidTable + 32 * i);
      steps[i] = _mm512_sub_epi16(_mm512_loadu_si512(kSigmoidTable + 32 * i + 1), entries[i]);
    }
  }
  static FIXPOINT_INLINE __m512i Pick(const __m512i (&table)[4], __m512i index) {
    const __m512i low = _mm512_permutex2var_epi16(table[0], index, table[1]);
    const __m512i high = _mm512_permutex2var_epi16(table[2], index, table[3]);
    return _mm512_mask_blend_epi16(_mm512_test_epi16_mask(index, _mm512_set1_epi16(64)), low, high);
  }
  // w for 32 values i in [0, 32767]. vpmulhrsw(a, b) is rs(a * b, 15), so rs(step * f, 8) =
  // vpmulhrsw(step, 128 * f).
  FIXPOINT_INLINE __m512i operator()(__m512i i) const {
    const __m512i index = _mm512_srli_epi16(i, 8);
    const __m512i fraction = _mm512_slli_epi16(_mm512_and_si512(i, _mm512_set1_epi16(255)), 7);
    return _mm512_add_epi16(Pick(entries, index),
                            _mm512_mulhrs_epi16(Pick(steps, index), fraction));
  }
  __m512i entries[4], steps[4];
};

// silu of two vectors of gates within int16, times up, before the product's shift.
struct SwiGluProduct {
  FIXPOINT_INLINE SwiGluProduct(const SwiGluArgs& args)
      : multiplier(_mm512_set1_epi32(args.sigmoid_multiplier)), scale(args.sigmoid_shift) {}
  FIXPOINT_INLINE __m512i TableInput(__m512i magnitude) const {
    return _mm512_min_epi32(scale(Times16(magnitude, multiplier)), _mm512_set1_epi32(32767));
  }
  FIXPOINT_INLINE void operator()(__m512i& first, __m512i& second, __m512i up_first,
                                  __m512i up_second) const {
    // Packing interleaves 128-bit lanes; unpacking below undoes it.
    const __m512i i = _mm512_packs_epi32(TableInput(_mm512_abs_epi32(first)),
                                         TableInput(_mm512_abs_epi32(second)));
    const __m512i gate = _mm512_packs_epi32(first, second);
    const __m512i up = _mm512_packs_epi32(up_first, up_second);
    const __m512i magnitude = _mm512_abs_epi16(gate);
    const __m512i r = _mm512_mulhrs_epi16(magnitude, table(i));
    const __m512i y = _mm512_mask_sub_epi16(_mm512_sub_epi16(magnitude, r),
                                            _mm512_movepi16_mask(gate), _mm512_setzero_si512(), r);
    const __m512i low = _mm512_mullo_epi16(y, up), high = _mm512_mulhi_epi16(y, up);
    first = _mm512_unpacklo_epi16(low, high);
    second = _mm512_unpackhi_epi16(low, high);
  }
  SigmoidTable table;
  __m512i multiplier;
  Round scale;
};

// Rows that need no shift are within the limit already.
template <bool kShifted>
FIXPOINT_INLINE __m512i NormInput(const SafeRound& round, const int32_t* h, __mmask16 mask) {
  const __m512i x = LoadInt32(h, mask);
  if constexpr (!kShifted) return x;
  return Clamp32(round(x), kNormInputLimit);
}

int32_t LargestMagnitude(const int32_t* h, int32_t n) {
  __m512i largest = _mm512_setzero_si512();
  for (int32_t j = 0; j < n; j += 16) {
    largest = _mm512_max_epi32(largest, _mm512_abs_epi32(LoadInt32(h + j, TailMask16(n - j))));
  }
  return _mm512_reduce_max_epi32(largest);
}

template <bool kShifted>
uint64_t SumOfSquares(const int32_t* h, int32_t n, const SafeRound& round) {
  __m512i sum = _mm512_setzero_si512();
  for (int32_t j = 0; j < n; j += 16) {
    const __m512i x = NormInput<kShifted>(round, h + j, TailMask16(n - j));
    const WidePair square = MultiplyWide(x, x);
    sum = _mm512_add_epi64(sum, _mm512_add_epi64(square.even, square.odd));
  }
  return static_cast<uint64_t>(_mm512_reduce_add_epi64(sum));
}

// RoPE and both requantizations of one head through `x`, head_dim values of working space.
void RotateHead(const RotateHeadsArgs& args, const int32_t* acc, const int16_t* cos,
                const int16_t* sin, int32_t channel, int32_t* x, int8_t* out) {
  const int32_t half = args.head_dim / 2;
  const VectorNarrow before(args.before), after(args.after);
  const Round round14(14);
  for (int32_t i = 0; i < half; i += 16) {
    const __mmask16 mask = TailMask16(half - i);
    const __m512i a = Clamp32(before(LoadInt32(acc + i, mask), channel + i, mask), 32767);
    const __m512i b =
        Clamp32(before(LoadInt32(acc + half + i, mask), channel + half + i, mask), 32767);
    // Zero-extended, so that Times16 multiplies signed 16-bit values.
    const __m512i c = LoadMultipliers(cos + i, mask), s = LoadMultipliers(sin + i, mask);
    const __m512i low = round14(_mm512_sub_epi32(Times16(a, c), Times16(b, s)));
    const __m512i high = round14(_mm512_add_epi32(Times16(b, c), Times16(a, s)));
    _mm512_mask_storeu_epi32(x + i, mask, Clamp32(low, 32767));
    _mm512_mask_storeu_epi32(x + half + i, mask, Clamp32(high, 32767));
  }
  if (args.hadamard) Hadamard(x, args.head_dim, args.head_dim);
  const auto value = [&](int32_t i, __mmask16 mask) __attribute__((always_inline)) {
    return after(LoadInt32(x + i, mask), channel + i, mask);
  };
  StoreRow(value, args.head_dim, out, nullptr, 0);
}

template <bool kShifted>
void NormRow(const RmsNormArgs& args, int32_t t, const int32_t* h, int32_t input_shift) {
  const Round last(args.k);
  const SafeRound input(input_shift);
  const InverseRoot root = InverseSquareRoot((args.epsilon >> (2 * input_shift)) +
                                             SumOfSquares<kShifted>(h, args.hidden, input));
  const __m512i inverse = _mm512_set1_epi32(static_cast<int32_t>(root.inverse));
  const ScaleWide scale(root.shift - args.fraction_bits, 32767);
  const auto value = [&](int32_t j, __mmask16 mask) __attribute__((always_inline)) {
    const __m512i x = scale(NormInput<kShifted>(input, h + j, mask), inverse);
    return last(Times16(x, LoadMultipliers(args.multipliers + j, mask)));
  };
  StoreRow(value, args.hidden, args.out.hi, args.out.lo, static_cast<size_t>(t) * args.out.stride);
}

}  // namespace

void Embed(const EmbedArgs& args) {
  const ScaleWide scale(args.requantize.n, kResidualLimit);
  for (int32_t t = 0; t < args.tokens; ++t) {
    const int32_t id = args.token_ids[t];
    const int8_t* row = args.table + static_cast<size_t>(id) * args.hidden;
    int32_t* h = args.h + static_cast<size_t>(t) * args.hidden;
    const __m512i multiplier = _mm512_set1_epi32(args.requantize.multipliers[id]);
    for (int32_t j = 0; j < args.hidden; j += 16) {
      const __mmask16 mask = TailMask16(args.hidden - j);
      const __m512i x = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, row + j));
      _mm512_mask_storeu_epi32(h + j, mask, scale(x, multiplier));
    }
  }
}

void RmsNorm(const RmsNormArgs& args) {
  for (int32_t t = 0; t < args.tokens; ++t) {
    const int32_t* h = args.h + static_cast<size_t>(t) * args.hidden;
    const int32_t shift = NormInputShift(LargestMagnitude(h, args.hidden));
    if (shift == 0) {
      NormRow<false>(args, t, h, shift);
    } else {
      NormRow<true>(args, t, h, shift);
    }
  }
}

void RotateHeads(const RotateHeadsArgs& args) {
  alignas(64) int32_t x[512];  // head_dim of any model is far below
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
  const VectorNarrow narrow(args.requantize);
  for (int32_t t = 0; t < args.tokens; ++t) {
    const int32_t* acc = args.acc + static_cast<size_t>(t) * args.acc_stride;
    const auto value = [&](int32_t c, __mmask16 mask) __attribute__((always_inline)) {
      return narrow(LoadInt32(acc + c, mask), c, mask);
    };
    StoreRow(value, args.channels, args.out, nullptr, static_cast<size_t>(t) * args.out_stride);
  }
}

void ResidualAdd(const ResidualAddArgs& args) {
  // |h| is within the limit, so what is added may be clamped to twice the limit beforehand.
  static_assert(int64_t{3} * kResidualLimit < INT32_MAX);
  const ScaleWide scale(args.requantize.n, 2 * kResidualLimit);
  for (int32_t t = 0; t < args.tokens; ++t) {
    const int32_t* acc = args.acc + static_cast<size_t>(t) * args.acc_stride;
    int32_t* h = args.h + static_cast<size_t>(t) * args.hidden;
    for (int32_t j = 0; j < args.hidden; j += 16) {
      const __mmask16 mask = TailMask16(args.hidden - j);
      const __m512i x =
          scale(LoadInt32(acc + j, mask), LoadInt32(args.requantize.multipliers + j, mask));
      _mm512_mask_storeu_epi32(
          h + j, mask, Clamp32(_mm512_add_epi32(LoadInt32(h + j, mask), x), kResidualLimit));
    }
  }
}

void SwiGlu(const SwiGluArgs& args) {
  const VectorNarrow gate(args.gate_requantize), up(args.up_requantize), out(args.out_requantize);
  const SwiGluProduct multiply(args);
  const Round product(args.product_shift);
  const int32_t n = args.channels;
  for (int32_t t = 0; t < args.tokens; ++t) {
    const int32_t* g = args.gate + static_cast<size_t>(t) * args.acc_stride;
    const int32_t* u = args.up + static_cast<size_t>(t) * args.acc_stride;
    for (int32_t c = 0; c < n; c += 32) {
      const int32_t d = c + 16 < n ? c + 16 : c;  // a lone last vector is paired with nothing
      const __mmask16 mask = TailMask16(n - c), next = d == c ? 0 : TailMask16(n - d);
      __m512i a = Clamp32(gate(LoadInt32(g + c, mask), c, mask), 32767);
      __m512i b = Clamp32(gate(LoadInt32(g + d, next), d, next), 32767);
      multiply(a, b, Clamp32(up(LoadInt32(u + c, mask), c, mask), 32767),
               Clamp32(up(LoadInt32(u + d, next), d, next), 32767));
      _mm512_mask_storeu_epi32(args.scratch + c, mask, Clamp32(product(a), kProductLimit));
      _mm512_mask_storeu_epi32(args.scratch + d, next, Clamp32(product(b), kProductLimit));
    }
    Hadamard(args.scratch, n, args.hadamard_block);
    const auto value = [&](int32_t c, __mmask16 mask) __attribute__((always_inline)) {
      return out(LoadInt32(args.scratch + c, mask), c, mask);
    };
    StoreRow(value, n, args.out.hi, args.out.lo, static_cast<size_t>(t) * args.out.stride);
  }
}

void Logits(const LogitsArgs& args) {
  const ScaleWide scale(args.requantize.n, kLogitLimit);
  for (int32_t t = 0; t < args.tokens; ++t) {
    const int32_t* acc = args.acc + static_cast<size_t>(t) * args.acc_stride;
    int32_t* logits = args.logits + static_cast<size_t>(t) * args.logits_stride;
    for (int32_t c = args.column_begin; c < args.column_end; c += 16) {
      const __mmask16 mask = TailMask16(args.column_end - c);
      _mm512_mask_storeu_epi32(
          logits + c, mask,
          scale(LoadInt32(acc + c, mask), LoadInt32(args.requantize.multipliers + c, mask)));
    }
  }
}

}  // namespace fixpoint::vnni
