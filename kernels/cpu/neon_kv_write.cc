// Rows of k and v into the tiles of the KV cache (ops.h).
#include "kernels/cpu/neon.h"
#include "kernels/cpu/neon_common.h"

namespace fixpoint::neon {
namespace {

// One key: 4 dimensions, then those of the other 15 keys of its group.
void WriteKey(const int8_t* k, int32_t head_dim, int8_t* out) {
  for (int32_t d = 0; d < head_dim; d += 16, out += 256) {
    const int32x4_t x = vreinterpretq_s32_s8(vld1q_s8(k + d));
    auto* to = reinterpret_cast<int32_t*>(out);
    vst1q_lane_s32(to, x, 0);
    vst1q_lane_s32(to + 16, x, 1);
    vst1q_lane_s32(to + 32, x, 2);
    vst1q_lane_s32(to + 48, x, 3);
  }
}

void WriteOneValue(const int8_t* v, int32_t head_dim, int8_t* out) {
  for (int32_t d = 0; d < head_dim; ++d) out[4 * d] = v[d];
}

// Four tokens from a multiple of 4 on: st4 interleaves them as the tile wants.
void WriteFourValues(const int8_t* v, size_t stride, int32_t head_dim, int8_t* out) {
  for (int32_t d = 0; d < head_dim; d += 16) {
    vst4q_s8(out + 4 * d, {{vld1q_s8(v + d), vld1q_s8(v + stride + d), vld1q_s8(v + 2 * stride + d),
                            vld1q_s8(v + 3 * stride + d)}});
  }
}

void WriteHead(const KvWriteArgs& args, int32_t head) {
  const auto head_dim = static_cast<size_t>(args.head_dim);
  for (int32_t t = 0; t < args.tokens;) {
    const int32_t position = args.position + t, slot = position % kKvBlockTokens;
    int8_t* k_tile =
        args.cache.base +
        static_cast<size_t>(args.block_table[position / kKvBlockTokens]) * args.cache.block_stride +
        static_cast<size_t>(head) * 2 * kKvBlockTokens * head_dim;
    int8_t* v_tile = k_tile + kKvBlockTokens * head_dim + slot / 4 * 4 * head_dim;
    const size_t row = static_cast<size_t>(t) * args.stride + static_cast<size_t>(head) * head_dim;
    const int32_t count = slot % 4 == 0 && t + 4 <= args.tokens ? 4 : 1;
    for (int32_t i = 0; i < count; ++i) {
      WriteKey(args.k + row + i * args.stride, args.head_dim,
               k_tile + (slot + i) / 16 * 16 * head_dim + (slot + i) % 16 * 4);
    }
    if (count == 4) {
      WriteFourValues(args.v + row, args.stride, args.head_dim, v_tile);
    } else {
      WriteOneValue(args.v + row, args.head_dim, v_tile + slot % 4);
    }
    t += count;
  }
}

}  // namespace

void KvWrite(const KvWriteArgs& args) {
  for (int32_t head = 0; head < args.kv_heads; ++head) WriteHead(args, head);
}

}  // namespace fixpoint::neon
