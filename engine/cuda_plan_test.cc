#include "engine/cuda_plan.h"

#include <cstring>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#include "engine/philox.h"
#include "engine/sampler.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

constexpr CudaPlanShape kShape = {.max_tokens = 64,
                                  .max_rows = 16,
                                  .max_sequence_blocks = 40,
                                  .num_heads = 8,
                                  .kv_heads = 2,
                                  .head_dim = 64,
                                  .multiprocessors = 4,
                                  .score_elements = 1 << 20,
                                  .part_rows = 1 << 16};

struct Memory {
  explicit Memory(const CudaPlanShape& shape) : bytes(MaxPlanBytes(shape) / 16 + 1) {}
  struct alignas(16) Unit {
    int8_t byte[16] = {};
  };
  int8_t* get() { return bytes[0].byte; }
  template <typename T>
  const T* At(size_t offset) {
    return reinterpret_cast<const T*>(get() + offset);
  }
  std::vector<Unit> bytes;
};

std::vector<int32_t> Iota(int32_t n, int32_t first) {
  std::vector<int32_t> values(static_cast<size_t>(n));
  std::iota(values.begin(), values.end(), first);
  return values;
}

TEST(CudaPlanTest, FlattensChunksInOrder) {
  const std::vector<int32_t> prompt = Iota(10, 100), one = {7}, table = Iota(40, 500),
                             other = {9, 8, 7}, rows = {0, 9}, first = {0};
  Memory memory(kShape);
  const CudaPlan plan =
      MakePlan(kShape, {{prompt, 60, table, rows}, {one, 130, other, first}}, memory.get());
  ASSERT_EQ(plan.tokens, 11);
  ASSERT_EQ(plan.num_rows, 3);
  EXPECT_LE(plan.used_bytes, MaxPlanBytes(kShape));
  EXPECT_EQ(memory.At<int32_t>(plan.token_ids)[9], 109);
  EXPECT_EQ(memory.At<int32_t>(plan.token_ids)[10], 7);
  EXPECT_EQ(memory.At<int32_t>(plan.positions)[4], 64);
  EXPECT_EQ(memory.At<int32_t>(plan.blocks)[3], 500);
  EXPECT_EQ(memory.At<int32_t>(plan.blocks)[4], 501);
  EXPECT_EQ(memory.At<int32_t>(plan.blocks)[10], 7);
  EXPECT_EQ(memory.At<int32_t>(plan.rows)[1], 9);
  EXPECT_EQ(memory.At<int32_t>(plan.rows)[2], 10);
  ASSERT_EQ(plan.num_prefill_tiles, 2);  // 8 tokens of 4 heads each
  ASSERT_EQ(plan.num_decode_tiles, 1);
  const AttentionTile& tile = memory.At<AttentionTile>(plan.decode_tiles)[0];
  EXPECT_EQ(tile.token, 10);
  EXPECT_EQ(tile.position, 130);
  EXPECT_EQ(tile.score_blocks, 3);
  EXPECT_EQ(memory.At<int32_t>(plan.block_tables)[tile.table_begin + 2], 7);
  EXPECT_EQ(plan.score_keys, 3 * kKvBlockTokens);
  EXPECT_EQ(plan.row_stride, 4);
  EXPECT_GE(plan.splits * plan.split_blocks, 3);
}

// Parameters of a choice go into the piece, padding and rows without one choose nothing.
TEST(CudaPlanTest, SaysHowTokensAreChosen) {
  const std::vector<int32_t> ids = {7, 8, 9}, table = {3}, all = {0, 1, 2};
  const SamplingParams greedy, drawn = {.inverse_temperature_q16 = 65536,
                                        .top_k = 5,
                                        .top_p_q16 = 60000,
                                        .min_p_q16 = 70,
                                        .seed = 11};
  const std::vector<RowChoice> choices = {{&greedy, 4}, {}, {&drawn, 6}};
  CudaPlanShape shape = kShape;
  shape.logit_fraction_bits = 12;
  Memory memory(shape);
  std::memset(memory.get(), 0x5a, MaxPlanBytes(shape));
  const std::vector<SequenceChunk> chunks = {{ids, 0, table, all, choices}};
  const auto bucket = FindBucket(shape, chunks);
  ASSERT_TRUE(bucket.has_value());
  const CudaPlan plan = MakePlan(shape, chunks, memory.get(), bucket);
  ASSERT_EQ(plan.num_rows, 4);
  EXPECT_LE(plan.used_bytes, MaxPlanBytes(shape));
  const auto* rows = memory.At<CudaSampleRow>(plan.choices);
  EXPECT_EQ(rows[0].kind, SampleKind::kGreedy);
  EXPECT_EQ(rows[1].kind, SampleKind::kNothing);
  EXPECT_EQ(rows[2].kind, SampleKind::kDraw);
  EXPECT_EQ(rows[3].kind, SampleKind::kNothing);
  EXPECT_EQ(rows[2].top_k, 5);
  EXPECT_EQ(rows[2].top_p_q16, 60000u);
  EXPECT_EQ(rows[2].min_p_q16, 70u);
  EXPECT_EQ(rows[2].scale.c, MakeExpScale(65536, 12).c);
  EXPECT_EQ(rows[2].scale.n, MakeExpScale(65536, 12).n);
  EXPECT_EQ(rows[2].random, TokenRandomBits(11, 6));
}

// Memory for decoding goes to the first that fit; the others are done like prompts.
TEST(CudaPlanTest, WhatDoesNotFitIsPrefilled) {
  CudaPlanShape shape = kShape;
  const std::vector<int32_t> one = {7}, table = Iota(40, 0), first = {0};
  const SequenceChunk longer = {one, 2000, table, first}, shorter = {one, 10, table, first};
  shape.score_elements = 2 * 4 * 64;  // kv heads x rows x one block
  Memory memory(shape);
  CudaPlan plan = MakePlan(shape, {longer, shorter, shorter}, memory.get());
  EXPECT_EQ(plan.num_decode_tiles, 1);
  EXPECT_EQ(plan.num_prefill_tiles, 2);
  EXPECT_EQ(memory.At<AttentionTile>(plan.decode_tiles)->token, 1);
  shape = kShape;
  shape.part_rows = 2 * 8 * 3;  // kv heads x rows x three parts
  plan = MakePlan(shape, {longer, longer, longer, longer}, memory.get());
  EXPECT_LE(plan.num_decode_tiles * plan.splits, 3);
  EXPECT_EQ(plan.num_decode_tiles + plan.num_prefill_tiles, 4);
}

TEST(CudaPlanTest, SplitsFollowTheDevice) {
  const std::vector<int32_t> one = {7}, table = Iota(40, 0), first = {0};
  const std::vector<SequenceChunk> chunks(32, {one, 40 * 64 - 1, table, first});
  Memory memory(kShape);
  const CudaPlan alone = MakePlan(kShape, {chunks[0]}, memory.get());
  EXPECT_EQ(alone.splits, 8);  // 4 multiprocessors x 4, 2 kv heads
  EXPECT_EQ(alone.split_blocks, 5);
  const CudaPlan many = MakePlan(kShape, chunks, memory.get());
  EXPECT_EQ(many.split_blocks, kMaxSplitBlocks);  // sums must stay in int32
  EXPECT_EQ(many.splits, 3);
}

// The worst that CheckStep lets through.
TEST(CudaPlanTest, TheLargestStepFits) {
  for (const int32_t heads : {2, 8, 40}) {
    CudaPlanShape shape = kShape;
    shape.num_heads = heads;
    const std::vector<int32_t> ids = Iota(64, 0), table = Iota(40, 0), none;
    Memory memory(shape);
    std::vector<SequenceChunk> chunks(64, {{ids.data(), 1}, 40 * 64 - 1, table, none});
    EXPECT_LE(MakePlan(shape, chunks, memory.get()).used_bytes, MaxPlanBytes(shape) - 64);
    chunks = {{ids, 0, table, none}};
    EXPECT_LE(MakePlan(shape, chunks, memory.get()).used_bytes, MaxPlanBytes(shape) - 64);
  }
}

TEST(CudaPlanTest, BucketsAreCoarse) {
  const std::vector<int32_t> ids = Iota(9, 0), table = Iota(40, 0), first = {0}, none;
  const auto ids_of = [&](size_t n) { return absl::MakeConstSpan(ids).subspan(0, n); };
  const auto bucket = [&](size_t chunks, size_t tokens, int32_t position) {
    return FindBucket(kShape,
                      std::vector<SequenceChunk>(chunks, {ids_of(tokens), position, table, first}));
  };
  using B = CudaBucket;
  EXPECT_EQ(bucket(1, 1, 0), (B{.tokens = 1, .blocks = 4, .tile_rows = 4}));
  EXPECT_EQ(bucket(3, 1, 255), (B{.tokens = 4, .blocks = 4, .tile_rows = 4}));
  EXPECT_EQ(bucket(3, 1, 256), (B{.tokens = 4, .blocks = 8, .tile_rows = 4}));
  EXPECT_EQ(bucket(9, 1, 2559), (B{.tokens = 16, .blocks = 40, .tile_rows = 4}));
  EXPECT_EQ(bucket(17, 1, 0), (B{.tokens = 24, .blocks = 4, .tile_rows = 4}));
  EXPECT_EQ(bucket(1, 3, 0), (B{.tokens = 4, .blocks = 4, .tile_rows = 8}));
  EXPECT_EQ(bucket(8, 8, 0), (B{.tokens = 64, .blocks = 4, .tile_rows = 8}));
  EXPECT_EQ(bucket(1, 9, 0), std::nullopt) << "a prompt";
  EXPECT_EQ(bucket(65, 1, 0), std::nullopt) << "too many tokens";
  EXPECT_EQ(FindBucket(kShape, {{ids_of(1), 0, table, none}}), std::nullopt) << "no row";
  CudaPlanShape shape = kShape;
  shape.max_tokens = 20;
  const std::vector<SequenceChunk> chunks(17, {ids_of(1), 0, table, first});
  EXPECT_EQ(FindBucket(shape, chunks)->tokens, 20);
  shape.score_elements = 2 * 4 * 64 * 16;  // kv heads x rows x 16 blocks
  EXPECT_EQ(FindBucket(shape, chunks), std::nullopt) << "no memory for scores";
  shape = kShape;
  shape.part_rows = 24 * 2 * 8 - 1;
  EXPECT_EQ(FindBucket(shape, chunks), std::nullopt) << "no memory for parts";
}

// All that a launch is told.
auto ArgumentsOf(const CudaPlan& p) {
  return std::tuple(p.token_ids, p.positions, p.blocks, p.rows, p.decode_tiles, p.prefill_tiles,
                    p.block_tables, p.tokens, p.num_rows, p.num_decode_tiles, p.num_prefill_tiles,
                    p.score_keys, p.row_stride, p.split_blocks, p.splits);
}

TEST(CudaPlanTest, StepsOfABucketHaveTheSameLaunches) {
  const std::vector<int32_t> ids = Iota(8, 7), table = Iota(40, 3), first = {0}, two = {0, 2}, none;
  const auto ids_of = [&](size_t n) { return absl::MakeConstSpan(ids).subspan(0, n); };
  CudaPlanShape shape = kShape;
  shape.padding_block = 999;
  Memory memory(shape), other(shape);
  const std::vector<SequenceChunk> a = {{ids_of(3), 60, table, two}, {ids_of(2), 500, table, none}},
                                   b = {{ids_of(1), 300, table, first},
                                        {ids_of(1), 2, table, first},
                                        {ids_of(5), 7, table, two}};
  const auto bucket = FindBucket(shape, a);
  ASSERT_EQ(FindBucket(shape, b), bucket);
  std::memset(other.get(), 0x55, MaxPlanBytes(shape) - 64);
  const CudaPlan plan = MakePlan(shape, a, memory.get(), bucket);
  const CudaPlan again = MakePlan(shape, b, other.get(), bucket);
  EXPECT_EQ(ArgumentsOf(plan), ArgumentsOf(again));
  EXPECT_EQ(plan.tokens, 8);
  EXPECT_EQ(plan.num_rows, 8);
  EXPECT_EQ(plan.wanted_rows, 2);
  EXPECT_EQ(again.wanted_rows, 4);
  EXPECT_EQ(plan.num_prefill_tiles, 0);
  EXPECT_EQ(plan.num_decode_tiles, 8);
  // Seven tokens are real; of the eight tiles one, one and three.
  EXPECT_EQ(other.At<int32_t>(again.blocks)[6], 3);
  EXPECT_EQ(other.At<int32_t>(again.blocks)[7], 999);
  EXPECT_EQ(other.At<int32_t>(again.token_ids)[7], 0);
  EXPECT_EQ(other.At<int32_t>(again.positions)[7], 0);
  EXPECT_EQ(other.At<int32_t>(again.rows)[3], 4);
  EXPECT_EQ(other.At<int32_t>(again.rows)[4], 0);
  EXPECT_EQ(other.At<AttentionTile>(again.decode_tiles)[4].tokens, 1);
  for (int32_t i = 5; i < 8; ++i) {
    EXPECT_EQ(other.At<AttentionTile>(again.decode_tiles)[i].tokens, 0);
    EXPECT_EQ(other.At<AttentionTile>(again.decode_tiles)[i].score_blocks, 0);
  }
}

}  // namespace
}  // namespace fixpoint
