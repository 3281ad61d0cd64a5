// Everything between the matrix products. Simple loops over channels in pieces that stay in L1;
// each loop either vectorises or is a table look-up or 64-bit product that would not.
#include "kernels/cpu/isa_arithmetic.h"
#include "kernels/cpu/portable.h"

namespace fixpoint::FIXPOINT_LEVEL {
namespace {

constexpr int32_t kPiece = 256;  // channels handled at a time

int32_t PieceLength(int32_t left) { return left < kPiece ? left : kPiece; }

// rs(x, n) in 32 bits for every x: the bit that decides is added after the shift, so nothing
// overflows.
struct SafeRound {
  explicit SafeRound(int32_t n) : shift(n), before(n > 0 ? n - 1 : 0), one(n > 0 ? 1 : 0) {}
  int32_t operator()(int32_t x) const { return (x >> shift) + ((x >> before) & one); }
  int32_t shift, before, one;
};

// rs(int32(sat16(rs(v, p))) * M, k), then clamped to +-limit.
void NarrowPiece(const NarrowParams& params, const int32_t* __restrict v, int32_t channel,
                 int32_t n, int32_t limit, int32_t* __restrict out) {
  const SafeRound first(params.p);
  const int32_t k = params.k, half = 1 << (k - 1);
  const int16_t* __restrict m = params.multipliers + channel;
  for (int32_t i = 0; i < n; ++i) {
    const auto t = static_cast<int16_t>(Sat16(first(v[i])));
    out[i] = Clamp((t * m[i] + half) >> k, limit);
  }
}

// Values already clamped to the limit of the site.
void StorePiece(const int32_t* __restrict v, int32_t n, int8_t* __restrict hi,
                int8_t* __restrict lo) {
  if (lo == nullptr) {
    for (int32_t i = 0; i < n; ++i) hi[i] = static_cast<int8_t>(v[i]);
    return;
  }
  for (int32_t i = 0; i < n; ++i) {
    const int32_t high = (v[i] + 128) >> 8;
    hi[i] = static_cast<int8_t>(high);
    lo[i] = static_cast<int8_t>(v[i] - 256 * high);
  }
}

int32_t SiteLimit(const ActivationPlanes& out) { return out.lo == nullptr ? 127 : kWideSiteLimit; }

void StoreSitePiece(const int32_t* v, int32_t n, const ActivationPlanes& out, int32_t t,
                    int32_t channel) {
  const size_t at = static_cast<size_t>(t) * out.stride + channel;
  StorePiece(v, n, out.hi + at, out.lo == nullptr ? nullptr : out.lo + at);
}

void RotateHead(const RotateHeadsArgs& args, const int32_t* acc, const int16_t* __restrict cos,
                const int16_t* __restrict sin, int32_t channel, int8_t* out) {
  constexpr int32_t kMaxHeadDim = 512;  // head_dim of any model is far below
  int32_t x[kMaxHeadDim], u[kMaxHeadDim];
  const int32_t half = args.head_dim / 2;
  NarrowPiece(args.before, acc, channel, args.head_dim, 32767, x);
  for (int32_t i = 0; i < half; ++i) {
    const auto a = static_cast<int16_t>(x[i]), b = static_cast<int16_t>(x[i + half]);
    // Each product is at most 32767 * 32768, so their sum and 2^13 fit int32.
    u[i] = Sat16((a * cos[i] - b * sin[i] + (1 << 13)) >> 14);
    u[i + half] = Sat16((b * cos[i] + a * sin[i] + (1 << 13)) >> 14);
  }
  if (args.hadamard) WalshHadamard(u, args.head_dim);
  NarrowPiece(args.after, u, channel, args.head_dim, 127, x);
  StorePiece(x, args.head_dim, out, nullptr);
}

void SwiGluPiece(const SwiGluArgs& args, const int32_t* gate, const int32_t* up, int32_t channel,
                 int32_t n, int32_t* __restrict out) {
  int32_t g[kPiece], u[kPiece];
  NarrowPiece(args.gate_requantize, gate, channel, n, 32767, g);
  NarrowPiece(args.up_requantize, up, channel, n, 32767, u);
  for (int32_t i = 0; i < n; ++i) g[i] = Silu(g[i], args.sigmoid_multiplier, args.sigmoid_shift);
  const int32_t shift = args.product_shift, half = 1 << (shift - 1);
  for (int32_t i = 0; i < n; ++i) {
    out[i] = Clamp((static_cast<int16_t>(g[i]) * static_cast<int16_t>(u[i]) + half) >> shift,
                   kProductLimit);
  }
}

}  // namespace

void Embed(const EmbedArgs& args) {
  for (int32_t t = 0; t < args.tokens; ++t) {
    const int32_t id = args.token_ids[t];
    const int8_t* row = args.table + static_cast<size_t>(id) * args.hidden;
    int32_t* h = args.h + static_cast<size_t>(t) * args.hidden;
    const int32_t multiplier = args.requantize.multipliers[id];
    for (int32_t j = 0; j < args.hidden; ++j) {
      h[j] = static_cast<int32_t>(
          Clamp<int64_t>(Wide(row[j], multiplier, args.requantize.n), kResidualLimit));
    }
  }
}

void RmsNorm(const RmsNormArgs& args) {
  const int32_t half = 1 << (args.k - 1);
  int32_t x[kPiece];
  for (int32_t t = 0; t < args.tokens; ++t) {
    const int32_t* h = args.h + static_cast<size_t>(t) * args.hidden;
    int32_t largest = 0;
    for (int32_t j = 0; j < args.hidden; ++j) {
      const int32_t magnitude = h[j] < 0 ? -h[j] : h[j];
      largest = magnitude > largest ? magnitude : largest;
    }
    const int32_t input_shift = NormInputShift(largest);
    const SafeRound input(input_shift);
    uint64_t sum = args.epsilon >> (2 * input_shift);
    for (int32_t j = 0; j < args.hidden; ++j) {
      const int64_t v = Clamp(input(h[j]), kNormInputLimit);
      sum += static_cast<uint64_t>(v * v);
    }
    const InverseRoot root = InverseSquareRoot(sum);
    const int32_t shift = root.shift - args.fraction_bits;
    for (int32_t first = 0; first < args.hidden; first += kPiece) {
      const int32_t n = PieceLength(args.hidden - first);
      for (int32_t j = 0; j < n; ++j) {
        const int64_t v = Clamp(input(h[first + j]), kNormInputLimit);
        const int64_t unit = Clamp<int64_t>(RoundShift64(v * root.inverse, shift), 32767);
        x[j] = Clamp((static_cast<int32_t>(unit) * args.multipliers[first + j] + half) >> args.k,
                     SiteLimit(args.out));
      }
      StoreSitePiece(x, n, args.out, t, first);
    }
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
  int32_t x[kPiece];
  for (int32_t t = 0; t < args.tokens; ++t) {
    const int32_t* acc = args.acc + static_cast<size_t>(t) * args.acc_stride;
    int8_t* out = args.out + static_cast<size_t>(t) * args.out_stride;
    for (int32_t c = 0; c < args.channels; c += kPiece) {
      const int32_t n = PieceLength(args.channels - c);
      NarrowPiece(args.requantize, acc + c, c, n, 127, x);
      StorePiece(x, n, out + c, nullptr);
    }
  }
}

void ResidualAdd(const ResidualAddArgs& args) {
  const int32_t* __restrict m = args.requantize.multipliers;
  const int32_t n = args.requantize.n;
  for (int32_t t = 0; t < args.tokens; ++t) {
    const int32_t* __restrict acc = args.acc + static_cast<size_t>(t) * args.acc_stride;
    int32_t* __restrict h = args.h + static_cast<size_t>(t) * args.hidden;
    for (int32_t j = 0; j < args.hidden; ++j) {
      h[j] = static_cast<int32_t>(Clamp<int64_t>(h[j] + Wide(acc[j], m[j], n), kResidualLimit));
    }
  }
}

void SwiGlu(const SwiGluArgs& args) {
  int32_t x[kPiece];
  for (int32_t t = 0; t < args.tokens; ++t) {
    const size_t row = static_cast<size_t>(t) * args.acc_stride;
    for (int32_t c = 0; c < args.channels; c += kPiece) {
      SwiGluPiece(args, args.gate + row + c, args.up + row + c, c, PieceLength(args.channels - c),
                  args.scratch + c);
    }
    for (int32_t c = 0; c < args.channels; c += args.hadamard_block) {
      WalshHadamard(args.scratch + c, args.hadamard_block);
    }
    for (int32_t c = 0; c < args.channels; c += kPiece) {
      const int32_t n = PieceLength(args.channels - c);
      NarrowPiece(args.out_requantize, args.scratch + c, c, n, SiteLimit(args.out), x);
      StoreSitePiece(x, n, args.out, t, c);
    }
  }
}

void Logits(const LogitsArgs& args) {
  const int32_t* __restrict m = args.requantize.multipliers;
  const int32_t n = args.requantize.n;
  for (int32_t t = 0; t < args.tokens; ++t) {
    const int32_t* __restrict acc = args.acc + static_cast<size_t>(t) * args.acc_stride;
    int32_t* __restrict logits = args.logits + static_cast<size_t>(t) * args.logits_stride;
    for (int32_t c = args.column_begin; c < args.column_end; ++c) {
      logits[c] = static_cast<int32_t>(Clamp<int64_t>(Wide(acc[c], m[c], n), kLogitLimit));
    }
  }
}

}  // namespace fixpoint::FIXPOINT_LEVEL
