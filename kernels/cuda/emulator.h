// Runs kernels of this folder on the CPU, thread by thread: each thread of a block is a fibre that
// runs until it waits for others. For tests; slow (a warp-wide product takes microseconds). It
// finds wrong results, accesses outside of memory (with AddressSanitizer), barriers that not all
// threads reach and misaligned vector loads. Running the threads in either order brings a missing
// barrier to light. It cannot find missing fences or races inside a warp between two waits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace fixpoint::emulator {

// Order in which the threads of a block, and the blocks, are run by Run of the calling OS thread.
enum class Order { kForward, kBackward };
void SetOrder(Order order);

// Calls kernel(context) as each thread of each block. `threads` is a multiple of 32, at most 1024.
// Shared memory is filled with 0xa5 before each block. A broken rule ends the process with a
// message. One launch at a time on each OS thread.
void Run(std::array<uint32_t, 3> grid, uint32_t threads, size_t shared_bytes,
         void (*kernel)(const void* context), const void* context);

// For code inside a kernel.
int32_t ThreadIndex();
int32_t BlockIndex(int axis);
uint8_t* SharedMemory();  // 16-byte aligned
void SyncThreads();
void SyncWarp();
int32_t ShuffleXor(int32_t value, int32_t mask);
// mma.sync.m16n8k32 of int8 (kernels/cuda/device.cuh).
void MultiplyTile(int32_t (&c)[4], const std::array<uint32_t, 4>& a,
                  const std::array<uint32_t, 2>& b);
void CheckAligned(const void* at, size_t alignment);

}  // namespace fixpoint::emulator
