#include "text/bpe.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <queue>
#include <utility>

#include "absl/container/flat_hash_map.h"

namespace fixpoint {
namespace {

// Up to here a scan over all pairs for each merge beats the heap; most words are this short.
constexpr size_t kScanLimit = 24;
constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();
constexpr int32_t kNone = -1;

void MergeByScan(BpePairLookup lookup, std::vector<BpeSymbol>* symbols, EncodeWork* work) {
  BpeJoin joins[kScanLimit];
  size_t count = symbols->size();
  auto& s = *symbols;
  auto refresh = [&](size_t i) {  // the pair (i, i + 1)
    ++work->pair_lookups;
    if (!lookup(s[i], s[i + 1], &joins[i])) joins[i].rank = kNoRank;
  };
  for (size_t i = 0; i + 1 < count; ++i) refresh(i);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (joins[i].rank < joins[best].rank) best = i;
    }
    if (joins[best].rank == kNoRank) break;
    s[best].id = joins[best].joined;
    s[best].end = s[best + 1].end;
    std::copy(s.begin() + best + 2, s.begin() + count, s.begin() + best + 1);
    std::copy(joins + best + 1, joins + count - 1, joins + best);
    --count;
    if (best > 0) refresh(best - 1);
    if (best + 1 < count) refresh(best);
  }
  s.resize(count);
}

struct Candidate {
  int32_t left;  // index of the left symbol
  int32_t right;
  int32_t joined;
  uint32_t end;  // of the right symbol when this was pushed: a later merge makes it stale
};

// Candidates by rank, ties leftmost first. One queue per rank: nearly always its candidates come in
// order of place, which costs O(1); where they do not, the queue turns into a heap. A single heap
// over all would move a million entries about for a run of one letter.
class CandidateQueue {
 public:
  void Push(int32_t rank, const Candidate& candidate) {
    const auto [place, inserted] = index_.try_emplace(rank, static_cast<int32_t>(queues_.size()));
    if (inserted) queues_.emplace_back();
    Queue& queue = queues_[place->second];
    if (queue.empty()) {
      queue = Queue();
      ranks_.emplace(rank, place->second);
    }
    queue.Push(candidate);
  }

  bool Pop(Candidate* candidate) {
    if (ranks_.empty()) return false;
    Queue& queue = queues_[ranks_.top().second];
    *candidate = queue.Pop();
    if (queue.empty()) ranks_.pop();
    return true;
  }

 private:
  struct Right {
    bool operator()(const Candidate& a, const Candidate& b) const { return a.left > b.left; }
  };
  class Queue {
   public:
    bool empty() const { return head_ == items_.size(); }
    void Push(const Candidate& candidate) {
      if (!is_heap_ && (empty() || items_.back().left <= candidate.left)) {
        items_.push_back(candidate);
        return;
      }
      if (!is_heap_) {
        items_.erase(items_.begin(), items_.begin() + static_cast<int64_t>(head_));
        head_ = 0;
        std::make_heap(items_.begin(), items_.end(), Right());
        is_heap_ = true;
      }
      items_.push_back(candidate);
      std::push_heap(items_.begin(), items_.end(), Right());
    }
    Candidate Pop() {
      if (!is_heap_) return items_[head_++];
      std::pop_heap(items_.begin(), items_.end(), Right());
      const Candidate candidate = items_.back();
      items_.pop_back();
      return candidate;
    }

   private:
    std::vector<Candidate> items_;
    size_t head_ = 0;
    bool is_heap_ = false;
  };
  using RankAndQueue = std::pair<int32_t, int32_t>;

  absl::flat_hash_map<int32_t, int32_t> index_;  // rank -> place in queues_
  std::vector<Queue> queues_;
  // The ranks whose queues are not empty, lowest on top.
  std::priority_queue<RankAndQueue, std::vector<RankAndQueue>, std::greater<RankAndQueue>> ranks_;
};

class QueueMerger {
 public:
  QueueMerger(BpePairLookup lookup, std::vector<BpeSymbol>* symbols, EncodeWork* work)
      : lookup_(lookup), symbols_(*symbols), work_(work), links_(symbols->size()) {}

  void Run() {
    const int32_t count = static_cast<int32_t>(symbols_.size());
    for (int32_t i = 0; i < count; ++i) {
      links_[i] = {i - 1, i + 1 < count ? i + 1 : kNone};
      if (i + 1 < count) Push(i, i + 1);
    }
    for (Candidate c; candidates_.Pop(&c);) {
      ++work_->heap_operations;
      if (IsCurrent(c)) Join(c);
    }
    symbols_.erase(std::remove_if(symbols_.begin(), symbols_.end(),
                                  [](const BpeSymbol& s) { return s.id == kGone; }),
                   symbols_.end());
  }

 private:
  struct Link {
    int32_t previous, next;
  };
  static constexpr int32_t kGone = -2;

  void Push(int32_t left, int32_t right) {
    ++work_->pair_lookups;
    BpeJoin join;
    if (!lookup_(symbols_[left], symbols_[right], &join)) return;
    candidates_.Push(join.rank, {left, right, join.joined, symbols_[right].end});
    ++work_->heap_operations;
  }

  // The left symbol may only have grown by swallowing `right`, so an unchanged `next` proves it
  // whole.
  bool IsCurrent(const Candidate& c) const {
    return symbols_[c.left].id != kGone && symbols_[c.right].id != kGone &&
           links_[c.left].next == c.right && symbols_[c.right].end == c.end;
  }

  void Join(const Candidate& c) {
    symbols_[c.left].id = c.joined;
    symbols_[c.left].end = c.end;
    symbols_[c.right].id = kGone;
    const int32_t previous = links_[c.left].previous;
    const int32_t next = links_[c.right].next;
    links_[c.left].next = next;
    if (next != kNone) {
      links_[next].previous = c.left;
      Push(c.left, next);
    }
    if (previous != kNone) Push(previous, c.left);
  }

  BpePairLookup lookup_;
  std::vector<BpeSymbol>& symbols_;
  EncodeWork* work_;
  std::vector<Link> links_;
  CandidateQueue candidates_;
};

}  // namespace

void MergePairs(BpePairLookup lookup, std::vector<BpeSymbol>* symbols, EncodeWork* work) {
  if (symbols->size() < 2) return;
  if (symbols->size() <= kScanLimit) {
    MergeByScan(lookup, symbols, work);
  } else {
    QueueMerger(lookup, symbols, work).Run();
  }
}

}  // namespace fixpoint
