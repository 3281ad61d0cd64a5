#include "kernels/cuda/emulator.h"

#include <sys/mman.h>
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define FIXPOINT_OWN_SWITCH
#else
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

namespace fixpoint::emulator {
namespace {

constexpr uint32_t kWarpThreads = 32;
constexpr size_t kStackBytes = 256 << 10;  // a page that is not touched costs nothing
constexpr uint8_t kPoison = 0xa5;

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "emulator: %s (thread %d of block %d, %d, %d)\n", what, ThreadIndex(),
               BlockIndex(0), BlockIndex(1), BlockIndex(2));
  std::abort();
}

// A stack that something runs on; the switch saves where it stands.
struct Context {
#ifdef FIXPOINT_OWN_SWITCH
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  const void* stack_bottom = nullptr;
  size_t stack_bytes = 0;
};

#ifdef FIXPOINT_OWN_SWITCH
// Saves the registers that a function must preserve on the running stack and takes up another.
// swapcontext does the same with two system calls, twenty times slower.
extern "C" void FixpointSwitchStack(void** save, void* load);
asm(R"(
.text
.type FixpointSwitchStack, @function
FixpointSwitchStack:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size FixpointSwitchStack, .-FixpointSwitchStack
)");
#endif

void Switch(Context& from, Context& to, bool from_ends) {
#ifdef __SANITIZE_ADDRESS__
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &fake, to.stack_bottom, to.stack_bytes);
#else
  static_cast<void>(from_ends);
#endif
#ifdef FIXPOINT_OWN_SWITCH
  FixpointSwitchStack(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

enum class State { kReady, kAtWarpBarrier, kAtBlockBarrier, kDone };

struct Fibre {
  Context context;
  State state = State::kDone;
};

// What a warp exchanges. Two of it, used in turn: a lane that is late reads the one while others
// already write the other, and cannot be two exchanges late.
struct Exchange {
  int32_t value[kWarpThreads];
  std::array<uint32_t, 4> a[kWarpThreads];
  std::array<uint32_t, 2> b[kWarpThreads];
};

struct WarpState {
  Exchange exchange[2];
  uint32_t arrived = 0;
  uint32_t turn[kWarpThreads] = {};
};

class Machine {
 public:
  ~Machine() {
    for (void* stack : stacks_) munmap(stack, kStackBytes);
  }

  void Run(std::array<uint32_t, 3> grid, uint32_t threads, size_t shared_bytes,
           void (*kernel)(const void*), const void* context) {
    kernel_ = kernel;
    kernel_context_ = context;
    threads_ = threads;
    block_ = {};
    if (threads == 0 || threads % kWarpThreads != 0 || threads > 1024) Fail("bad block size");
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0) Fail("empty grid");
    if (grid[1] > 65535 || grid[2] > 65535) Fail("grid too large");
    if (shared_bytes > (96 << 10)) Fail("more shared memory than the smallest target has");
    Reserve(threads);
    // Exact size, so that AddressSanitizer sees each step beyond it.
    const std::unique_ptr<uint8_t, void (*)(void*)> shared(
        static_cast<uint8_t*>(std::aligned_alloc(16, (shared_bytes + 31) / 16 * 16)), std::free);
    shared_ = shared.get();
    const uint64_t blocks = uint64_t{grid[0]} * grid[1] * grid[2];
    for (uint64_t i = 0; i < blocks; ++i) {
      const uint64_t b = order == Order::kForward ? i : blocks - 1 - i;
      block_ = {static_cast<uint32_t>(b % grid[0]), static_cast<uint32_t>(b / grid[0] % grid[1]),
                static_cast<uint32_t>(b / grid[0] / grid[1])};
      std::memset(shared_, kPoison, shared_bytes);
      RunBlock();
    }
  }

  // Of the running fibre.
  uint32_t thread() const { return thread_; }
  uint32_t block(int axis) const { return block_[static_cast<size_t>(axis)]; }
  uint8_t* shared() const { return shared_; }

  void WaitForBlock() { Wait(State::kAtBlockBarrier); }
  void WaitForWarp() {
    WarpState& warp = warps_[thread_ / kWarpThreads];
    if (++warp.arrived < kWarpThreads) {
      Wait(State::kAtWarpBarrier);
      return;
    }
    warp.arrived = 0;
    const uint32_t first = thread_ / kWarpThreads * kWarpThreads;
    for (uint32_t i = 0; i < kWarpThreads; ++i) {
      Fibre& other = fibres_[first + i];
      if (first + i == thread_) continue;
      if (other.state != State::kAtWarpBarrier) Fail("a warp's threads wait for different things");
      other.state = State::kReady;
    }
  }
  Exchange& NextExchange() {
    WarpState& warp = warps_[thread_ / kWarpThreads];
    return warp.exchange[warp.turn[thread_ % kWarpThreads]++ % 2];
  }

  Order order = Order::kForward;

 private:
  static void Start();  // first function of each fibre

  void Reserve(uint32_t threads) {
    while (stacks_.size() < threads) {
      void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (stack == MAP_FAILED) Fail("no memory for a stack");
      stacks_.push_back(stack);
    }
    if (fibres_.size() < threads) fibres_.resize(threads);
    if (warps_.size() < threads / kWarpThreads) warps_.resize(threads / kWarpThreads);
  }

  void Prepare(uint32_t thread) {
    Fibre& fibre = fibres_[thread];
    Context& c = fibre.context;
    c.stack_bottom = stacks_[thread];
    c.stack_bytes = kStackBytes;
#ifdef FIXPOINT_OWN_SWITCH
    // As if it had been switched away from at the entry of Start: six registers, the address to
    // return to, and a stack that a call has just left 8 bytes off a multiple of 16.
    auto* top = reinterpret_cast<uint64_t*>(static_cast<uint8_t*>(stacks_[thread]) + kStackBytes);
    top[-1] = 0;
    top[-2] = reinterpret_cast<uint64_t>(&Machine::Start);
    for (int i = 3; i <= 8; ++i) top[-i] = 0;
    c.stack_pointer = top - 8;
#else
    getcontext(&c.context);
    c.context.uc_stack.ss_sp = stacks_[thread];
    c.context.uc_stack.ss_size = kStackBytes;
    c.context.uc_link = nullptr;
    makecontext(&c.context, &Machine::Start, 0);
#endif
    fibre.state = State::kReady;
  }

  void RunBlock() {
    for (uint32_t i = 0; i < threads_; ++i) Prepare(i);
    for (WarpState& warp : warps_) warp = {};
    for (;;) {
      bool ran = false;
      for (uint32_t i = 0; i < threads_ / kWarpThreads; ++i) {
        const uint32_t warp = order == Order::kForward ? i : threads_ / kWarpThreads - 1 - i;
        while (RunWarp(warp)) ran = true;
      }
      if (!ReleaseBlock(ran)) return;
    }
  }

  // One pass over the lanes that can run.
  bool RunWarp(uint32_t warp) {
    bool ran = false;
    for (uint32_t i = 0; i < kWarpThreads; ++i) {
      thread_ = warp * kWarpThreads + (order == Order::kForward ? i : kWarpThreads - 1 - i);
      if (fibres_[thread_].state != State::kReady) continue;
      ran = true;
      Switch(scheduler_, fibres_[thread_].context, false);
    }
    return ran;
  }

  // False when all threads are done.
  bool ReleaseBlock(bool ran) {
    uint32_t waiting = 0, done = 0;
    for (thread_ = 0; thread_ < threads_; ++thread_) {
      waiting += fibres_[thread_].state == State::kAtBlockBarrier;
      done += fibres_[thread_].state == State::kDone;
    }
    thread_ = 0;
    if (done == threads_) return false;
    if (waiting != threads_ || !ran) Fail("a barrier that not all threads of the block reach");
    for (uint32_t i = 0; i < threads_; ++i) fibres_[i].state = State::kReady;
    return true;
  }

  void Wait(State state) {
    Fibre& self = fibres_[thread_];
    self.state = state;
    Switch(self.context, scheduler_, false);
  }

  void (*kernel_)(const void*) = nullptr;
  const void* kernel_context_ = nullptr;
  uint32_t threads_ = 0;
  std::array<uint32_t, 3> block_ = {};
  uint32_t thread_ = 0;
  uint8_t* shared_ = nullptr;
  Context scheduler_;
  std::vector<void*> stacks_;
  std::vector<Fibre> fibres_;
  std::vector<WarpState> warps_;
};

Machine& ThisMachine() {
  thread_local Machine machine;
  return machine;
}

void Machine::Start() {
  Machine& m = ThisMachine();
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &m.scheduler_.stack_bottom, &m.scheduler_.stack_bytes);
#endif
  m.kernel_(m.kernel_context_);
  Fibre& self = m.fibres_[m.thread_];
  self.state = State::kDone;
  Switch(self.context, m.scheduler_, true);
  std::abort();  // nobody runs a fibre that is done
}

int32_t Byte(uint32_t word, int index) { return static_cast<int8_t>(word >> (8 * index)); }

}  // namespace

void SetOrder(Order order) { ThisMachine().order = order; }

void Run(std::array<uint32_t, 3> grid, uint32_t threads, size_t shared_bytes,
         void (*kernel)(const void* context), const void* context) {
  ThisMachine().Run(grid, threads, shared_bytes, kernel, context);
}

int32_t ThreadIndex() { return static_cast<int32_t>(ThisMachine().thread()); }
int32_t BlockIndex(int axis) { return static_cast<int32_t>(ThisMachine().block(axis)); }
uint8_t* SharedMemory() { return ThisMachine().shared(); }
void SyncThreads() { ThisMachine().WaitForBlock(); }
void SyncWarp() { ThisMachine().WaitForWarp(); }

int32_t ShuffleXor(int32_t value, int32_t mask) {
  Machine& m = ThisMachine();
  const uint32_t lane = m.thread() % kWarpThreads;
  Exchange& exchange = m.NextExchange();
  exchange.value[lane] = value;
  m.WaitForWarp();
  return exchange.value[lane ^ static_cast<uint32_t>(mask)];
}

void MultiplyTile(int32_t (&c)[4], const std::array<uint32_t, 4>& a,
                  const std::array<uint32_t, 2>& b) {
  Machine& m = ThisMachine();
  const uint32_t lane = m.thread() % kWarpThreads;
  Exchange& exchange = m.NextExchange();
  exchange.a[lane] = a;
  exchange.b[lane] = b;
  m.WaitForWarp();
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t high = i / 2, column = 2 * (lane % 4) + i % 2;
    uint32_t sum = static_cast<uint32_t>(c[i]);  // the instruction wraps around
    for (uint32_t t = 0; t < 4; ++t) {
      const auto& row = exchange.a[lane / 4 * 4 + t];
      const auto& other = exchange.b[column * 4 + t];
      for (uint32_t half = 0; half < 2; ++half) {
        for (int byte = 0; byte < 4; ++byte) {
          sum += static_cast<uint32_t>(Byte(row[2 * half + high], byte) * Byte(other[half], byte));
        }
      }
    }
    c[i] = static_cast<int32_t>(sum);
  }
}

void CheckAligned(const void* at, size_t alignment) {
  if (reinterpret_cast<uintptr_t>(at) % alignment != 0) Fail("misaligned vector load");
}

}  // namespace fixpoint::emulator
