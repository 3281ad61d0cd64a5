#include "engine/models/llama.h"

#include <type_traits>

namespace fixpoint {
namespace {

constexpr size_t kAlignBytes = 64;

// Below this many values a stage over token rows runs on the calling thread: waking the others
// would take longer.
constexpr int32_t kRowTaskValues = 8192;

// Attention over at most so many tokens at once, if the scratch of a worker stays below
// kAttentionScratchBytes. More tokens read each K and V tile less often; the scratch holds a score
// for each of them and each key.
constexpr int32_t kSegmentTokens = 64;
constexpr int32_t kLeastSegmentTokens = 16;
constexpr size_t kAttentionScratchBytes = size_t{16} << 20;

// Fewer tasks of attention for each worker than that are cut into parts of at least so many keys.
constexpr int32_t kTasksPerWorker = 4;
constexpr int32_t kPartKeys = 256;

// A step works in tiles when there are so many for each worker; below, the weights are what takes
// time, and each should be read by one worker only.
constexpr int32_t kTilesPerWorker = 2;
// Channels of gate and up that a tile works on at once, or a block of the Hadamard transform.
constexpr int32_t kTileChannels = 256;
// o_proj and down_proj work in tiles if their weights stay in a core's cache from tile to tile.
constexpr int64_t kTileWeightBytes = int64_t{3} << 19;

constexpr int32_t Min(int32_t a, int32_t b) { return a < b ? a : b; }
constexpr int32_t Max(int32_t a, int32_t b) { return a > b ? a : b; }
constexpr int32_t CeilDiv(int32_t a, int32_t b) { return (a + b - 1) / b; }
constexpr int32_t RoundUp(int32_t a, int32_t b) { return CeilDiv(a, b) * b; }
constexpr size_t RoundUpBytes(size_t a) {
  return (a + kAlignBytes - 1) / kAlignBytes * kAlignBytes;
}

// Row stride of a linear layer's accumulators.
constexpr size_t AccStride(int32_t outputs) {
  return static_cast<size_t>(RoundUp(outputs, kLinearAlign));
}

// Hands out consecutive aligned pieces; without memory it only adds them up.
class Carver {
 public:
  explicit Carver(int8_t* memory) : memory_(memory) {}
  template <typename T>
  T* Take(size_t rows, size_t columns) {
    int8_t* piece = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += RoundUpBytes(rows * columns * sizeof(T));
    return reinterpret_cast<T*>(piece);
  }
  ActivationPlanes TakePlanes(size_t rows, int32_t width) {
    const size_t stride = RoundUpBytes(static_cast<size_t>(width));
    return {Take<int8_t>(rows, stride), Take<int8_t>(rows, stride), stride};
  }
  size_t used() const { return used_; }

 private:
  int8_t* memory_;
  size_t used_ = 0;
};

ActivationPlanes Rows(const ActivationPlanes& planes, int32_t row, bool wide) {
  const size_t offset = static_cast<size_t>(row) * planes.stride;
  return {planes.hi + offset, wide ? planes.lo + offset : nullptr, planes.stride};
}

NarrowParams Channels(const NarrowParams& params, int32_t first) {
  return {params.multipliers + first, params.p, params.k};
}

int32_t TileChannels(const LlamaModel& m) { return Max(kTileChannels, m.down_hadamard_block); }

// Widest accumulators of a tile; 0 if ranges of outputs would not begin at kLinearAlign.
int32_t TileColumns(const LlamaModel& m) {
  if (m.head_dim % kLinearAlign != 0 || m.intermediate_size % kLinearAlign != 0) return 0;
  const int32_t head = (m.num_attention_heads / m.num_key_value_heads + 2) * m.head_dim;
  return Max(Max(head, 2 * TileChannels(m)), RoundUp(m.hidden_size, kLinearAlign));
}

// One call of LlamaForward: the members are its constants, the methods its stages in order.
class Step {
 public:
  Step(const LlamaModel& model, const LlamaKvCache& cache, const LlamaScratch& scratch,
       const ParallelHook& hook, const LlamaChunk* chunks, int32_t num_chunks)
      : m_(model),
        ops_(*model.ops),
        cache_(cache),
        s_(scratch),
        hook_(hook),
        chunks_(chunks),
        num_chunks_(num_chunks) {}

  void Run(int32_t* logits) {
    Flatten();
    Timed(StepPart::kEmbed, [&] { EmbedTokens(); });
    for (int32_t i = 0; i < m_.num_layers; ++i) {
      const LlamaLayer& layer = m_.layers[i];
      const KvLayer kv = {cache_.base + static_cast<size_t>(i) * cache_.layer_bytes,
                          cache_.block_bytes};
      const LlamaNorm* next = i + 1 == m_.num_layers ? nullptr : &m_.layers[i + 1].attn_norm;
      if (by_tiles_) {
        Timed(StepPart::kQkv, [&] { QkvTiles(layer, kv); });
      } else {
        Timed(StepPart::kQkv, [&] { Linear(layer.qkv, s_.normed, layer.attn_norm.wide); });
      }
      Timed(StepPart::kAttention, [&] { Attention(layer, kv); });
      LinearAddNorm(StepPart::kO, layer.o_proj, s_.attended, layer.attn_out_wide,
                    layer.o_requantize, &layer.mlp_norm);
      if (by_tiles_) {
        Timed(StepPart::kGateUp, [&] { GateUpTiles(layer); });
      } else {
        Timed(StepPart::kGateUp, [&] { Linear(layer.gate_up, s_.normed, layer.mlp_norm.wide); });
        Timed(StepPart::kSwiGlu, [&] { SwiGluRows(layer); });
      }
      LinearAddNorm(StepPart::kDown, layer.down_proj, s_.activated, layer.down_in_wide,
                    layer.down_requantize, next);
    }
    if (wanted_ > 0) Timed(StepPart::kHead, [&] { Head(logits); });
  }

 private:
  template <typename Work>
  void Timed(StepPart part, Work&& work) {
    StepClock* clock = hook_.clock;
    const int64_t start = clock == nullptr ? 0 : clock->now();
    work();
    if (clock != nullptr) clock->taken[static_cast<int>(part)] += clock->now() - start;
  }

  template <typename Task>
  void Parallel(int32_t tasks, Task&& task) {
    if (tasks <= 1 || hook_.workers <= 1) {
      for (int32_t i = 0; i < tasks; ++i) task(i, 0);
      return;
    }
    using Bare = std::remove_reference_t<Task>;
    hook_.run(
        hook_.context, tasks,
        [](void* argument, int32_t index, int32_t worker) {
          (*static_cast<Bare*>(argument))(index, worker);
        },
        const_cast<void*>(static_cast<const void*>(&task)));
  }

  // task(first_row, rows, worker) over the flat batch, `width` values a row.
  template <typename Task>
  void ParallelRows(int32_t rows, int32_t width, Task&& task) {
    const int32_t block = Max(1, kRowTaskValues / width);
    Parallel(CeilDiv(rows, block), [&](int32_t index, int32_t worker) {
      const int32_t first = index * block;
      task(first, Min(block, rows - first), worker);
    });
  }

  // task(first_row, rows, column_begin, column_end) over [rows][outputs]: by columns, and by rows
  // too where the columns alone would not keep all workers busy. About four tasks a worker even out
  // their differences.
  template <typename Task>
  void ParallelColumns(int32_t rows, int32_t outputs, Task&& task) {
    const int32_t goal = hook_.workers == 1 ? 1 : 4 * hook_.workers;
    const int32_t columns = RoundUp(CeilDiv(outputs, goal), kLinearAlign);
    const int32_t column_tasks = CeilDiv(outputs, columns);
    const int32_t row_tasks = Max(1, Min(goal / column_tasks, rows / 32));
    const int32_t row_block = CeilDiv(rows, row_tasks);
    Parallel(column_tasks * CeilDiv(rows, row_block), [&](int32_t index, int32_t) {
      const int32_t begin = index % column_tasks * columns;
      const int32_t first = index / column_tasks * row_block;
      task(first, Min(row_block, rows - first), begin, Min(begin + columns, outputs));
    });
  }

  // Token ids in one row, the list of wanted rows, the segments of attention. By tiles, a segment
  // ends where its tile ends.
  void Flatten() {
    int32_t tokens = 0;
    for (int32_t c = 0; c < num_chunks_; ++c) tokens += chunks_[c].tokens;
    by_tiles_ =
        s_.tile_stride > 0 && tokens > kTileTokens * kTilesPerWorker * hook_.workers - kTileTokens;
    for (int32_t c = 0; c < num_chunks_; ++c) {
      const LlamaChunk& chunk = chunks_[c];
      for (int32_t i = 0; i < chunk.num_logits; ++i) {
        s_.wanted_rows[wanted_++] = tokens_ + chunk.logit_indices[i];
      }
      const int32_t size = SegmentTokens(chunk.tokens);
      if (chunk.tokens > size) whole_chunks_ = false;
      for (int32_t i = 0; i < chunk.tokens;) {
        const int32_t row = tokens_ + i;
        if (by_tiles_ && row % kTileTokens == 0) s_.tile_segments[num_tiles_++] = num_segments_;
        int32_t count = Min(size, chunk.tokens - i);
        if (by_tiles_) count = Min(count, kTileTokens - row % kTileTokens);
        s_.segments[num_segments_++] = {c, i, count, row};
        i += count;
      }
      for (int32_t i = 0; i < chunk.tokens; ++i) s_.token_ids[tokens_ + i] = chunk.token_ids[i];
      tokens_ += chunk.tokens;
    }
    if (by_tiles_) s_.tile_segments[num_tiles_] = num_segments_;
    key_parts_ = KeyParts();
  }

  // Small enough that one chunk alone keeps all workers busy: a prompt's attention takes far longer
  // than that of the sequences that decode beside it.
  int32_t SegmentTokens(int32_t chunk_tokens) const {
    if (hook_.workers == 1) return s_.segment_tokens;
    const int32_t even = CeilDiv(chunk_tokens * m_.num_key_value_heads, 4 * hook_.workers);
    return Min(s_.segment_tokens, Max(kLeastSegmentTokens, even));
  }

  void EmbedTokens() {
    ParallelRows(tokens_, m_.hidden_size, [&](int32_t row, int32_t rows, int32_t) {
      ops_.embed({.table = m_.embedding,
                  .requantize = m_.embedding_requantize,
                  .token_ids = s_.token_ids + row,
                  .tokens = rows,
                  .hidden = m_.hidden_size,
                  .h = ResidualRow(row)});
      Norm(m_.layers[0].attn_norm, row, rows, Rows(s_.normed, row, m_.layers[0].attn_norm.wide));
    });
  }

  // acc[row][outputs] = x . W
  void Linear(const LlamaLinear& linear, const ActivationPlanes& x, bool wide) {
    ParallelColumns(tokens_, linear.outputs,
                    [&](int32_t row, int32_t rows, int32_t begin, int32_t end) {
                      LinearBlock(linear, Rows(x, row, wide), rows, begin, end,
                                  AccRow(linear, row) + begin, AccStride(linear.outputs));
                    });
  }

  void LinearBlock(const LlamaLinear& linear, const ActivationPlanes& x, int32_t rows,
                   int32_t begin, int32_t end, int32_t* acc, size_t acc_stride) {
    ops_.linear({.packed = linear.packed,
                 .outputs = linear.outputs,
                 .depth = linear.depth,
                 .bias = linear.bias,
                 .x = x,
                 .tokens = rows,
                 .output_begin = begin,
                 .output_end = end,
                 .acc = acc,
                 .acc_stride = acc_stride});
  }

  // h += x . W, and the next norm.
  void LinearAddNorm(StepPart part, const LlamaLinear& linear, const ActivationPlanes& x, bool wide,
                     const WideParams& requantize, const LlamaNorm* norm) {
    if (by_tiles_ && FitsTile(linear)) {
      Timed(part, [&] {
        ParallelTiles(1, [&](int32_t, const Tile& tile) {
          const size_t stride = AccStride(linear.outputs);
          LinearBlock(linear, Rows(x, tile.row, wide), tile.rows, 0, linear.outputs, tile.acc,
                      stride);
          AddAndNormRows(requantize, norm, tile.acc, stride, tile.row, tile.rows);
        });
      });
      return;
    }
    Timed(part, [&] { Linear(linear, x, wide); });
    Timed(StepPart::kAddNorm, [&] { AddAndNorm(requantize, norm); });
  }

  // h += acc, and the next norm of the same rows while they are in the cache.
  void AddAndNorm(const WideParams& requantize, const LlamaNorm* norm) {
    const size_t stride = AccStride(m_.hidden_size);
    ParallelRows(tokens_, m_.hidden_size, [&](int32_t row, int32_t rows, int32_t) {
      AddAndNormRows(requantize, norm, s_.acc + static_cast<size_t>(row) * stride, stride, row,
                     rows);
    });
  }

  void AddAndNormRows(const WideParams& requantize, const LlamaNorm* norm, const int32_t* acc,
                      size_t acc_stride, int32_t row, int32_t rows) {
    ops_.residual_add({.acc = acc,
                       .acc_stride = acc_stride,
                       .tokens = rows,
                       .hidden = m_.hidden_size,
                       .requantize = requantize,
                       .h = ResidualRow(row)});
    if (norm != nullptr) Norm(*norm, row, rows, Rows(s_.normed, row, norm->wide));
  }

  void Norm(const LlamaNorm& norm, int32_t row, int32_t rows, const ActivationPlanes& out) {
    ops_.rms_norm({.h = ResidualRow(row),
                   .tokens = rows,
                   .hidden = m_.hidden_size,
                   .epsilon = m_.norm_epsilon,
                   .fraction_bits = norm.fraction_bits,
                   .multipliers = norm.multipliers,
                   .k = norm.k,
                   .out = out});
  }

  // Accumulators of one kv head at some row: its q heads side by side, k and v.
  struct HeadAcc {
    const int32_t* q;
    const int32_t* k;
    const int32_t* v;
    size_t stride;
  };
  struct Tile {
    int32_t index, row, rows;
    int32_t* acc;  // of the worker, [kTileTokens][tile_stride]
    int32_t worker;
  };

  // task(column, tile) for each of `columns` and each tile; a worker
  // stays in one column, whose weights it has in its cache, as long as it can.
  template <typename Task>
  void ParallelTiles(int32_t columns, Task&& task) {
    Parallel(columns * num_tiles_, [&](int32_t index, int32_t worker) {
      const int32_t tile = index % num_tiles_, row = tile * kTileTokens;
      int32_t* acc = s_.tile_acc + static_cast<size_t>(worker) * kTileTokens * s_.tile_stride;
      task(index / num_tiles_, Tile{tile, row, Min(kTileTokens, tokens_ - row), acc, worker});
    });
  }

  // Columns are kv heads.
  void QkvTiles(const LlamaLayer& layer, const KvLayer& kv) {
    const int32_t width = Group() * m_.head_dim, all_q = m_.num_attention_heads * m_.head_dim;
    const auto stride = static_cast<size_t>(width + 2 * m_.head_dim);
    ParallelTiles(m_.num_key_value_heads, [&](int32_t head, const Tile& tile) {
      const auto product = [&](int32_t begin, int32_t columns, int32_t* to) {
        LinearBlock(layer.qkv, Rows(s_.normed, tile.row, layer.attn_norm.wide), tile.rows, begin,
                    begin + columns, to, stride);
      };
      int32_t* acc = tile.acc;
      const int32_t k = all_q + head * m_.head_dim;
      product(head * width, width, acc);
      product(k, m_.head_dim, acc + width);
      product(k + m_.num_key_value_heads * m_.head_dim, m_.head_dim, acc + width + m_.head_dim);
      for (int32_t i = s_.tile_segments[tile.index]; i < s_.tile_segments[tile.index + 1]; ++i) {
        const LlamaSegment& segment = s_.segments[i];
        const int32_t* row = acc + static_cast<size_t>(segment.row - tile.row) * stride;
        PrepareHead(layer, kv, segment, head,
                    {row, row + width, row + width + m_.head_dim, stride});
      }
    });
  }

  // Tasks are (kv head, segment): a worker stays with a head, whose K and V it has in its cache. A
  // head needs K and V of its own head only, so when each chunk is one segment a task does
  // everything; otherwise all K and V are written before the first score.
  void Attention(const LlamaLayer& layer, const KvLayer& kv) {
    const int32_t tasks = num_segments_ * m_.num_key_value_heads;
    const auto segment_of = [&](int32_t index) -> const LlamaSegment& {
      return s_.segments[index % num_segments_];
    };
    const auto head_of = [&](int32_t index) { return index / num_segments_; };
    const bool together = whole_chunks_ && !by_tiles_;
    if (key_parts_ > 1) return AttentionByParts(layer, kv, tasks);
    if (!together && !by_tiles_) {
      Parallel(tasks, [&](int32_t index, int32_t) {
        PrepareHead(layer, kv, segment_of(index), head_of(index));
      });
    }
    Parallel(tasks, [&](int32_t index, int32_t worker) {
      if (together) PrepareHead(layer, kv, segment_of(index), head_of(index));
      ops_.attention(AttentionOf(layer, kv, segment_of(index), head_of(index),
                                 s_.attention + static_cast<size_t>(worker) * s_.attention_stride));
    });
  }

  // How many parts the keys of each (sequence, kv head) are cut into: more than one if all chunks
  // are single tokens, too few for the workers, with keys enough to be worth the waiting in
  // between.
  int32_t KeyParts() const {
    const AttentionParts* const parts = ops_.attention_parts;
    const int32_t tasks = num_chunks_ * m_.num_key_value_heads;
    if (parts == nullptr || hook_.workers == 1 || tokens_ > num_chunks_ ||
        tasks >= kTasksPerWorker * hook_.workers) {
      return 1;
    }
    // The same number of them for each worker, if all have the same length.
    int32_t count = RoundUp(CeilDiv(kTasksPerWorker * hook_.workers, tasks), hook_.workers);
    count = Min(count, LongestKeys() / kPartKeys);
    return count > 1 && tasks * PartsBytes(count) <= hook_.workers * s_.attention_stride ? count
                                                                                         : 1;
  }
  int32_t LongestKeys() const {
    int32_t keys = 0;
    for (int32_t c = 0; c < num_chunks_; ++c) keys = Max(keys, chunks_[c].position + 1);
    return keys;
  }
  // Of what the parts of a task share.
  size_t PartsBytes(int32_t parts) const {
    return RoundUpBytes(ops_.attention_parts->bytes(LongestKeys(), parts, Group(), m_.head_dim));
  }

  // Stages of AttentionParts over the memory of all workers.
  void AttentionByParts(const LlamaLayer& layer, const KvLayer& kv, int32_t tasks) {
    const AttentionParts& parts = *ops_.attention_parts;
    const size_t stride = PartsBytes(key_parts_);
    const auto args = [&](int32_t index) {
      return AttentionOf(layer, kv, s_.segments[index % num_segments_], index / num_segments_,
                         s_.attention + static_cast<size_t>(index) * stride);
    };
    Parallel(tasks, [&](int32_t index, int32_t) {
      PrepareHead(layer, kv, s_.segments[index % num_segments_], index / num_segments_);
    });
    Parallel(tasks * key_parts_, [&](int32_t index, int32_t) {
      parts.score(args(index / key_parts_), index % key_parts_, key_parts_);
    });
    Parallel(tasks * key_parts_, [&](int32_t index, int32_t) {
      parts.weigh(args(index / key_parts_), index % key_parts_, key_parts_);
    });
    Parallel(tasks, [&](int32_t index, int32_t) { parts.finish(args(index), key_parts_); });
  }

  // From the accumulators of the whole step.
  void PrepareHead(const LlamaLayer& layer, const KvLayer& kv, const LlamaSegment& segment,
                   int32_t kv_head) {
    const int32_t* acc = AccRow(layer.qkv, segment.row);
    const int32_t* k = acc + (m_.num_attention_heads + kv_head) * m_.head_dim;
    PrepareHead(layer, kv, segment, kv_head,
                {acc + kv_head * Group() * m_.head_dim, k, k + m_.num_key_value_heads * m_.head_dim,
                 AccStride(layer.qkv.outputs)});
  }

  // q heads of one kv head, k and v: from accumulators to int8, K and V into the cache.
  void PrepareHead(const LlamaLayer& layer, const KvLayer& kv, const LlamaSegment& segment,
                   int32_t kv_head, const HeadAcc& acc) {
    const int32_t q_column = kv_head * Group() * m_.head_dim;
    const int32_t kv_column = kv_head * m_.head_dim;
    const LlamaChunk& chunk = chunks_[segment.chunk];
    int8_t* k = s_.k + static_cast<size_t>(segment.row) * s_.kv_stride + kv_column;
    int8_t* v = s_.v + static_cast<size_t>(segment.row) * s_.kv_stride + kv_column;
    Rotate(acc.q, acc.stride, segment, Group(), Channels(layer.q_before, q_column),
           Channels(layer.q_after, q_column),
           s_.q + static_cast<size_t>(segment.row) * s_.q_stride + q_column, s_.q_stride);
    Rotate(acc.k, acc.stride, segment, 1, Channels(layer.k_before, kv_column),
           Channels(layer.k_after, kv_column), k, s_.kv_stride);
    ops_.narrow({.acc = acc.v,
                 .acc_stride = acc.stride,
                 .tokens = segment.count,
                 .channels = m_.head_dim,
                 .requantize = Channels(layer.v, kv_column),
                 .out = v,
                 .out_stride = s_.kv_stride});
    const size_t head_bytes = static_cast<size_t>(2) * kKvBlockTokens * m_.head_dim;
    ops_.kv_write({.k = k,
                   .v = v,
                   .stride = s_.kv_stride,
                   .tokens = segment.count,
                   .kv_heads = 1,
                   .head_dim = m_.head_dim,
                   .position = chunk.position + segment.first,
                   .block_table = chunk.block_table,
                   .cache = {kv.base + kv_head * head_bytes, kv.block_stride}});
  }

  void Rotate(const int32_t* acc, size_t acc_stride, const LlamaSegment& segment, int32_t heads,
              const NarrowParams& before, const NarrowParams& after, int8_t* out,
              size_t out_stride) {
    const size_t half = static_cast<size_t>(m_.head_dim / 2);
    const size_t rope_row = static_cast<size_t>(m_.prefix_tokens) +
                            static_cast<size_t>(chunks_[segment.chunk].position) +
                            static_cast<size_t>(segment.first);
    ops_.rotate_heads({.acc = acc,
                       .acc_stride = acc_stride,
                       .tokens = segment.count,
                       .heads = heads,
                       .head_dim = m_.head_dim,
                       .before = before,
                       .cos = m_.rope_cos + rope_row * half,
                       .sin = m_.rope_sin + rope_row * half,
                       .rope_stride = half,
                       .hadamard = m_.qk_hadamard,
                       .after = after,
                       .out = out,
                       .out_stride = out_stride});
  }

  AttentionArgs AttentionOf(const LlamaLayer& layer, const KvLayer& kv, const LlamaSegment& segment,
                            int32_t kv_head, void* scratch) {
    const LlamaChunk& chunk = chunks_[segment.chunk];
    return {.q = s_.q + static_cast<size_t>(segment.row) * s_.q_stride,
            .q_stride = s_.q_stride,
            .tokens = segment.count,
            .position = chunk.position + segment.first,
            .num_heads = m_.num_attention_heads,
            .kv_heads = m_.num_key_value_heads,
            .head_dim = m_.head_dim,
            .kv_head_begin = kv_head,
            .kv_head_end = kv_head + 1,
            .cache = kv,
            .block_table = chunk.block_table,
            .prefix_k = layer.prefix_k,
            .prefix_v = layer.prefix_v,
            .prefix_tokens = m_.prefix_tokens,
            .scores = layer.scores,
            .requantize = layer.attn_out,
            .out = Rows(s_.attended, segment.row, layer.attn_out_wide),
            .scratch = scratch};
  }

  void SwiGluRows(const LlamaLayer& layer) {
    ParallelRows(tokens_, m_.intermediate_size, [&](int32_t row, int32_t rows, int32_t worker) {
      const int32_t* acc = AccRow(layer.gate_up, row);
      SwiGlu(layer, acc, acc + m_.intermediate_size, AccStride(layer.gate_up.outputs), row, rows, 0,
             m_.intermediate_size, worker);
    });
  }

  // Columns are blocks of channels.
  void GateUpTiles(const LlamaLayer& layer) {
    const int32_t block = TileChannels(m_);
    const auto stride = static_cast<size_t>(2 * block);
    ParallelTiles(CeilDiv(m_.intermediate_size, block), [&](int32_t column, const Tile& tile) {
      const int32_t begin = column * block, end = Min(begin + block, m_.intermediate_size);
      const ActivationPlanes x = Rows(s_.normed, tile.row, layer.mlp_norm.wide);
      LinearBlock(layer.gate_up, x, tile.rows, begin, end, tile.acc, stride);
      LinearBlock(layer.gate_up, x, tile.rows, m_.intermediate_size + begin,
                  m_.intermediate_size + end, tile.acc + block, stride);
      SwiGlu(layer, tile.acc, tile.acc + block, stride, tile.row, tile.rows, begin, end - begin,
             tile.worker);
    });
  }

  // Channels [first, first + channels) of some rows.
  void SwiGlu(const LlamaLayer& layer, const int32_t* gate, const int32_t* up, size_t acc_stride,
              int32_t row, int32_t rows, int32_t first, int32_t channels, int32_t worker) {
    ActivationPlanes out = Rows(s_.activated, row, layer.down_in_wide);
    out.hi += first;
    if (out.lo != nullptr) out.lo += first;
    ops_.swiglu({.gate = gate,
                 .up = up,
                 .acc_stride = acc_stride,
                 .tokens = rows,
                 .channels = channels,
                 .gate_requantize = Channels(layer.gate, first),
                 .up_requantize = Channels(layer.up, first),
                 .sigmoid_multiplier = layer.sigmoid_multiplier,
                 .sigmoid_shift = layer.sigmoid_shift,
                 .product_shift = layer.product_shift,
                 .hadamard_block = m_.down_hadamard_block,
                 .out_requantize = Channels(layer.down_in, first),
                 .out = out,
                 .scratch = s_.swiglu + static_cast<size_t>(worker) * s_.swiglu_stride});
  }

  void Head(int32_t* logits) {
    Parallel(wanted_, [&](int32_t index, int32_t) {
      Norm(m_.final_norm, s_.wanted_rows[index], 1, Rows(s_.head_in, index, m_.final_norm.wide));
    });
    const size_t acc_stride = AccStride(m_.vocab_size);
    ParallelColumns(wanted_, m_.vocab_size,
                    [&](int32_t row, int32_t rows, int32_t begin, int32_t end) {
                      int32_t* acc = s_.head_acc + static_cast<size_t>(row) * acc_stride;
                      LinearBlock(m_.head, Rows(s_.head_in, row, m_.final_norm.wide), rows, begin,
                                  end, acc + begin, acc_stride);
                      ops_.logits({.acc = acc,
                                   .acc_stride = acc_stride,
                                   .tokens = rows,
                                   .column_begin = begin,
                                   .column_end = end,
                                   .requantize = m_.head_requantize,
                                   .logits = logits + static_cast<size_t>(row) * m_.vocab_size,
                                   .logits_stride = static_cast<size_t>(m_.vocab_size)});
                    });
  }

  int32_t Group() const { return m_.num_attention_heads / m_.num_key_value_heads; }
  bool FitsTile(const LlamaLinear& linear) const {
    return int64_t{linear.outputs} * linear.depth <= kTileWeightBytes;
  }
  int32_t* ResidualRow(int32_t row) {
    return s_.h + static_cast<size_t>(row) * static_cast<size_t>(m_.hidden_size);
  }
  int32_t* AccRow(const LlamaLinear& linear, int32_t row) {
    return s_.acc + static_cast<size_t>(row) * AccStride(linear.outputs);
  }

  const LlamaModel& m_;
  const Ops& ops_;
  const LlamaKvCache& cache_;
  const LlamaScratch& s_;
  const ParallelHook& hook_;
  const LlamaChunk* chunks_;
  const int32_t num_chunks_;
  int32_t tokens_ = 0;  // of all chunks
  int32_t wanted_ = 0;  // logit rows
  int32_t num_segments_ = 0;
  int32_t num_tiles_ = 0;
  bool by_tiles_ = false;
  int32_t key_parts_ = 1;
  bool whole_chunks_ = true;  // no chunk has more than one segment
};

}  // namespace

size_t LayOutLlamaScratch(const LlamaModel& model, const LlamaStepLimits& limits, int8_t* memory,
                          LlamaScratch* scratch) {
  const size_t tokens = static_cast<size_t>(limits.max_tokens);
  const size_t rows = static_cast<size_t>(limits.max_logits);
  const size_t workers = static_cast<size_t>(limits.workers);
  const int32_t q_width = model.num_attention_heads * model.head_dim;
  const int32_t kv_width = model.num_key_value_heads * model.head_dim;
  const int32_t widest =
      Max(Max(q_width + 2 * kv_width, 2 * model.intermediate_size), model.hidden_size);
  LlamaScratch s;
  Carver carver(memory);
  s.token_ids = carver.Take<int32_t>(tokens, 1);
  s.wanted_rows = carver.Take<int32_t>(rows, 1);
  s.segments = carver.Take<LlamaSegment>(tokens, 1);
  s.h = carver.Take<int32_t>(tokens, static_cast<size_t>(model.hidden_size));
  s.normed = carver.TakePlanes(tokens, model.hidden_size);
  s.acc = carver.Take<int32_t>(tokens, AccStride(widest));
  s.q_stride = RoundUpBytes(static_cast<size_t>(q_width));
  s.kv_stride = RoundUpBytes(static_cast<size_t>(kv_width));
  s.q = carver.Take<int8_t>(tokens, s.q_stride);
  s.k = carver.Take<int8_t>(tokens, s.kv_stride);
  s.v = carver.Take<int8_t>(tokens, s.kv_stride);
  s.attended = carver.TakePlanes(tokens, q_width);
  s.activated = carver.TakePlanes(tokens, model.intermediate_size);
  s.head_in = carver.TakePlanes(rows, model.hidden_size);
  s.head_acc = carver.Take<int32_t>(rows, AccStride(model.vocab_size));
  const int32_t max_keys = model.prefix_tokens + limits.max_sequence_tokens;
  const auto attention_bytes = [&](int32_t segment_tokens) {
    return model.ops->attention_scratch_bytes(segment_tokens, max_keys, model.num_attention_heads,
                                              model.num_key_value_heads, model.head_dim);
  };
  s.segment_tokens = Min(kSegmentTokens, limits.max_tokens);
  while (s.segment_tokens > 1 && attention_bytes(s.segment_tokens) > kAttentionScratchBytes) {
    s.segment_tokens /= 2;
  }
  s.attention_stride = RoundUpBytes(attention_bytes(s.segment_tokens));
  s.attention = carver.Take<int8_t>(workers, s.attention_stride);
  s.swiglu_stride = static_cast<size_t>(RoundUp(model.intermediate_size, 16));
  s.swiglu = carver.Take<int32_t>(workers, s.swiglu_stride);
  s.tile_segments = carver.Take<int32_t>(tokens / kTileTokens + 2, 1);
  s.tile_stride = static_cast<size_t>(TileColumns(model));
  s.tile_acc = carver.Take<int32_t>(workers * kTileTokens, s.tile_stride);
  *scratch = s;
  return carver.used();
}

void LlamaForward(const LlamaModel& model, const LlamaKvCache& cache, const LlamaScratch& scratch,
                  const ParallelHook& hook, const LlamaChunk* chunks, int32_t num_chunks,
                  int32_t* logits) {
  Step(model, cache, scratch, hook, chunks, num_chunks).Run(logits);
}

}  // namespace fixpoint
