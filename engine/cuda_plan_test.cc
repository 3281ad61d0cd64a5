#include "engine/cuda_plan.h"

#include <cstring>
#include <numeric>
#include <vector>

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

}  // namespace
}  // namespace fixpoint
