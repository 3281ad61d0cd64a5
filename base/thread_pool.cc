#include "base/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <chrono>
#include <system_error>

#include "base/available_cpus.h"
#include "base/check.h"

namespace fixpoint {
namespace {

constexpr std::chrono::microseconds kSpinTime{30};

inline void CpuRelax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// How many CpuRelax take kSpinTime here: a pause lasts 5 to 140 cycles depending on the processor's
// generation.
int MeasureSpinIterations() {
  constexpr int kSample = 1000;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kSample; ++i) CpuRelax();
  const auto elapsed = std::chrono::steady_clock::now() - start;
  const int64_t ns =
      std::max<int64_t>(1, std::chrono::duration_cast<std::chrono::nanoseconds>(elapsed).count());
  const int64_t spin_ns = std::chrono::nanoseconds(kSpinTime).count();
  return static_cast<int>(std::clamp<int64_t>(spin_ns * kSample / ns, 100, 100'000));
}

// Waits while `value` equals `old`: spins first, then sleeps in the kernel.
uint32_t WaitWhileEqual(const std::atomic<uint32_t>& value, uint32_t old, int spin_iterations) {
  for (int i = 0; i < spin_iterations; ++i) {
    if (const uint32_t now = value.load(std::memory_order_acquire); now != old) return now;
    CpuRelax();
  }
  for (;;) {
    if (const uint32_t now = value.load(std::memory_order_acquire); now != old) return now;
    value.wait(old, std::memory_order_acquire);
  }
}

// A refused affinity (a CPU taken away in between) only costs speed.
void PinCurrentThread(int worker) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  int left = worker % std::max(1, CPU_COUNT(&allowed));
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed) || left-- != 0) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    (void)pthread_setaffinity_np(pthread_self(), sizeof(one), &one);
    return;
  }
}

}  // namespace

ThreadPool::ThreadPool(int threads, ThreadPoolOptions options) {
  CHECK_GE(threads, 1);
  // Spinning on a CPU that another thread of the team needs would only delay that thread.
  if (threads <= AvailableCpuCount()) spin_iterations_ = MeasureSpinIterations();
  workers_.reserve(static_cast<size_t>(threads - 1));
  for (int i = 1; i < threads; ++i) {
    try {
      workers_.emplace_back([this, i, options] {
        if (options.pin_threads) PinCurrentThread(i);
        WorkerMain(i);
      });
    } catch (const std::system_error&) {
      break;
    }
  }
  thread_count_ = 1 + static_cast<int>(workers_.size());
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::RunErased(Task task, void* context) {
  CHECK(!running_.exchange(true, std::memory_order_acquire)) << "ThreadPool::Run is running";
  if (!workers_.empty()) {
    task_ = task;
    context_ = context;
    pending_.store(static_cast<uint32_t>(workers_.size()), std::memory_order_relaxed);
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
  }
  task(context, 0, thread_count_);
  for (;;) {
    const uint32_t left = pending_.load(std::memory_order_acquire);
    if (left == 0) break;
    WaitWhileEqual(pending_, left, spin_iterations_);
  }
  running_.store(false, std::memory_order_release);
}

void ThreadPool::WorkerMain(int thread_index) {
  uint32_t epoch = 0;
  for (;;) {
    // Runs never overlap, so a worker cannot miss an epoch: the next one starts after all workers
    // finished this one.
    epoch = WaitWhileEqual(epoch_, epoch, spin_iterations_);
    if (stop_) return;
    task_(context_, thread_index, thread_count_);
    if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_one();
  }
}

}  // namespace fixpoint
