// For tests of the engine: an executor whose model counts. The likeliest token behind token t is t
// + 1 (modulo the vocabulary).
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

#include "engine/executor.h"

namespace fixpoint {

// Chunks with all that they point to but the sampling parameters, as a device has them.
class ChunkCopies {
 public:
  ChunkCopies() = default;
  explicit ChunkCopies(absl::Span<const SequenceChunk> chunks) : parts_(chunks.size()) {
    const auto copy = [](const auto& from, auto& to) {
      to.assign(from.begin(), from.end());
      return absl::MakeConstSpan(to);
    };
    for (size_t i = 0; i < chunks.size(); ++i) {
      const SequenceChunk& from = chunks[i];
      Part& to = parts_[i];
      chunks_.push_back({copy(from.token_ids, to.ids), from.position,
                         copy(from.block_table, to.table), copy(from.logit_indices, to.rows),
                         copy(from.choices, to.choices)});
    }
  }
  absl::Span<const SequenceChunk> chunks() const { return chunks_; }
  // Makes chunks wrong that somebody goes on reading.
  void Spoil() {
    for (Part& part : parts_) {
      for (auto* values : {&part.ids, &part.table, &part.rows})
        std::fill(values->begin(), values->end(), 0);
      std::fill(part.choices.begin(), part.choices.end(), RowChoice());
    }
  }

 private:
  struct Part {
    std::vector<int32_t> ids, table, rows;
    std::vector<RowChoice> choices;
  };
  std::vector<Part> parts_;
  std::vector<SequenceChunk> chunks_;
};

class FakeExecutor : public Executor {
 public:
  explicit FakeExecutor(const ExecutorLimits& limits = {.vocab_size = 100,
                                                        .num_blocks = 32,
                                                        .block_tokens = 16,
                                                        .block_bytes = 1,
                                                        .max_sequence_tokens = 200,
                                                        .max_step_tokens = 64,
                                                        .max_step_logits = 16})
      : limits_(limits) {}

  const ExecutorLimits& limits() const override { return limits_; }

  // Before the first step.
  void CopyChunks() { copies_chunks_ = true; }
  bool copies_chunks() const override { return copies_chunks_; }
  absl::Status Submit(absl::Span<const SequenceChunk> chunks, int32_t* logits,
                      int32_t* tokens) override {
    if (!copies_chunks_) return Executor::Submit(chunks, logits, tokens);
    copies_ = ChunkCopies(chunks);
    return Executor::Submit(copies_.chunks(), logits, tokens);
  }

  absl::Status Forward(absl::Span<const SequenceChunk> chunks, int32_t* logits) override {
    std::unique_lock<std::mutex> lock(mutex_);
    ++steps_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return allowed_steps_ != 0; });
    if (allowed_steps_ > 0) --allowed_steps_;
    if (fails_) return absl::InternalError("the fake device fell off the bus");
    for (const SequenceChunk& chunk : chunks) {
      for (const int32_t index : chunk.logit_indices) {
        std::fill(logits, logits + limits_.vocab_size, 0);
        const int32_t next = (chunk.token_ids[static_cast<size_t>(index)] + 1) % limits_.vocab_size;
        logits[next] = 20 << 16;
        logits += limits_.vocab_size;
      }
    }
    return absl::OkStatus();
  }

  // Steps that may still end: -1 for any number.
  void Allow(int steps) {
    std::lock_guard<std::mutex> lock(mutex_);
    allowed_steps_ = steps;
    changed_.notify_all();
  }
  void Fail() {
    std::lock_guard<std::mutex> lock(mutex_);
    fails_ = true;
  }
  int steps() {
    std::lock_guard<std::mutex> lock(mutex_);
    return steps_;
  }
  // Until `steps` steps have begun.
  void AwaitSteps(int steps) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return steps_ >= steps; });
  }

 private:
  const ExecutorLimits limits_;
  bool copies_chunks_ = false;
  ChunkCopies copies_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int steps_ = 0;
  int allowed_steps_ = -1;
  bool fails_ = false;
};

}  // namespace fixpoint
