// A fixed team of threads for compute: fork/join many thousand times a second.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace fixpoint {

struct ThreadPoolOptions {
  bool pin_threads = false;  // worker i to the i-th CPU that the process may use; the caller's
                             // thread is left alone
};

// Run forks one function over the team and joins it; the calling thread works as thread 0. Between
// runs workers spin for some tens of microseconds, because the next run of a decode step is usually
// nearer than a futex wake-up (about 5 to 50 us), and then sleep. No allocation and no lock in Run.
// One Run at a time, from any thread; nesting or overlapping runs is a CHECK failure. The functions
// must not throw.
class ThreadPool {
 public:
  // At least one thread, the caller included. When the system refuses to start one, the team stays
  // smaller: see thread_count().
  explicit ThreadPool(int threads, ThreadPoolOptions options = {});
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  int thread_count() const { return thread_count_; }

  // fn(int thread_index, int thread_count), once on each thread. All that was written before Run is
  // visible to fn, all that fn wrote is visible after Run.
  template <typename F>
  void Run(F&& fn) {
    using Function = std::remove_reference_t<F>;
    RunErased([](void* context, int index,
                 int count) { (*static_cast<Function*>(context))(index, count); },
              const_cast<void*>(static_cast<const void*>(std::addressof(fn))));
  }

  // fn(int64_t begin, int64_t end, int thread_index) over pieces of [0, items) of at most `grain`
  // items. Threads take the next piece when they are free, so a slow core delays by one piece at
  // most. Pieces start at multiples of `grain`.
  template <typename F>
  void ParallelFor(int64_t items, int64_t grain, F&& fn) {
    grain = std::max<int64_t>(grain, 1);
    if (thread_count_ == 1 || items <= grain) {
      for (int64_t begin = 0; begin < items; begin += grain) {
        fn(begin, std::min(items, begin + grain), 0);
      }
      return;
    }
    next_item_.store(0, std::memory_order_relaxed);
    Run([&](int thread_index, int) {
      for (;;) {
        const int64_t begin = next_item_.fetch_add(grain, std::memory_order_relaxed);
        if (begin >= items) return;
        fn(begin, std::min(items, begin + grain), thread_index);
      }
    });
  }

 private:
  using Task = void (*)(void* context, int thread_index, int thread_count);
  void RunErased(Task task, void* context);
  void WorkerMain(int thread_index);

  int thread_count_ = 1;
  int spin_iterations_ = 0;
  std::vector<std::thread> workers_;

  // Written by the caller before epoch_ moves on, read by workers after it: no lock needed.
  Task task_ = nullptr;
  void* context_ = nullptr;
  bool stop_ = false;
  std::atomic<bool> running_{false};

  alignas(64) std::atomic<uint32_t> epoch_{0};     // number of the current run
  alignas(64) std::atomic<uint32_t> pending_{0};   // workers that have not finished it
  alignas(64) std::atomic<int64_t> next_item_{0};  // of ParallelFor
};

}  // namespace fixpoint
