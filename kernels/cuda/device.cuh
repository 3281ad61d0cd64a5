// The language of the kernels: CUDA under nvcc, the emulator under any other compiler. A kernel
// uses what is declared here and nothing else of CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define FIXPOINT_DEVICE __device__ __forceinline__
#define FIXPOINT_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define FIXPOINT_CONSTANT __constant__
#define FIXPOINT_UNROLL _Pragma("unroll")
#define FIXPOINT_SHARED(name) extern __shared__ __align__(16) uint8_t name[]
#define FIXPOINT_CUDA_NAMESPACE cuda_device
#else
#include "kernels/cuda/emulator.h"
#define FIXPOINT_DEVICE inline
#define FIXPOINT_KERNEL(threads, blocks) void
#define FIXPOINT_CONSTANT constexpr
#define FIXPOINT_UNROLL
#define FIXPOINT_SHARED(name) uint8_t* const name = ::fixpoint::emulator::SharedMemory()
#define FIXPOINT_CUDA_NAMESPACE cuda_emulated
#endif

namespace fixpoint::FIXPOINT_CUDA_NAMESPACE {

struct Grid {
  uint32_t x = 1, y = 1, z = 1;  // blocks; y and z below 65536
};

// Four registers of four int8 each: 16 bytes of an operand.
struct alignas(16) Quad {
  uint32_t word[4];
};

#ifdef __CUDACC__

FIXPOINT_DEVICE int32_t ThreadX() { return static_cast<int32_t>(threadIdx.x); }
FIXPOINT_DEVICE int32_t BlockX() { return static_cast<int32_t>(blockIdx.x); }
FIXPOINT_DEVICE int32_t BlockY() { return static_cast<int32_t>(blockIdx.y); }
FIXPOINT_DEVICE int32_t BlockZ() { return static_cast<int32_t>(blockIdx.z); }
FIXPOINT_DEVICE void SyncThreads() { __syncthreads(); }
FIXPOINT_DEVICE void SyncWarp() { __syncwarp(); }
FIXPOINT_DEVICE int32_t ShuffleXor(int32_t value, int32_t mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
FIXPOINT_DEVICE void AtomicAddShared(int32_t* at, int32_t value) { atomicAdd(at, value); }
// The same; returns what was there.
FIXPOINT_DEVICE uint32_t FetchAddShared(uint32_t* at, uint32_t value) {
  return atomicAdd(at, value);
}
// Memory that no thread writes while the kernel runs.
FIXPOINT_DEVICE Quad LoadQuad(const void* at) {
  const uint4 v = __ldg(static_cast<const uint4*>(at));
  return {{v.x, v.y, v.z, v.w}};
}
FIXPOINT_DEVICE Quad LoadSharedQuad(const void* at) { return *static_cast<const Quad*>(at); }

// c += a * b for the warp: a [16][32] int8, b [32][8] int8, c [16][8] int32. With g = lane / 4 and
// t = lane % 4 a lane holds
//   a0: row g, bytes 4t..      a1: row g + 8, bytes 4t..
//   a2: row g, bytes 16 + 4t.. a3: row g + 8, bytes 16 + 4t..
//   b0: column g, bytes 4t..   b1: column g, bytes 16 + 4t..
//   c[0], c[1]: row g, columns 2t, 2t + 1     c[2], c[3]: row g + 8
FIXPOINT_DEVICE void MultiplyTile(int32_t (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                  uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Runs the kernel on grid x threads. Returns a cudaError_t.
template <typename Args>
int Launch(void (*kernel)(Args), Grid grid, uint32_t threads, size_t shared_bytes, void* stream,
           Args args) {
  constexpr size_t kStaticLimit = 48 << 10;  // more has to be asked for
  if (shared_bytes > kStaticLimit) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return static_cast<int>(error);
  }
  void* parameters[] = {&args};
  return static_cast<int>(cudaLaunchKernel(reinterpret_cast<const void*>(kernel),
                                           dim3(grid.x, grid.y, grid.z), dim3(threads), parameters,
                                           shared_bytes, static_cast<cudaStream_t>(stream)));
}

#else

inline int32_t ThreadX() { return emulator::ThreadIndex(); }
inline int32_t BlockX() { return emulator::BlockIndex(0); }
inline int32_t BlockY() { return emulator::BlockIndex(1); }
inline int32_t BlockZ() { return emulator::BlockIndex(2); }
inline void SyncThreads() { emulator::SyncThreads(); }
inline void SyncWarp() { emulator::SyncWarp(); }
inline int32_t ShuffleXor(int32_t value, int32_t mask) { return emulator::ShuffleXor(value, mask); }
inline void AtomicAddShared(int32_t* at, int32_t value) {
  *at = static_cast<int32_t>(static_cast<uint32_t>(*at) + static_cast<uint32_t>(value));
}
inline uint32_t FetchAddShared(uint32_t* at, uint32_t value) {
  const uint32_t before = *at;
  *at += value;
  return before;
}
inline Quad LoadQuad(const void* at) {
  emulator::CheckAligned(at, alignof(Quad));
  return *static_cast<const Quad*>(at);
}
inline Quad LoadSharedQuad(const void* at) { return LoadQuad(at); }
inline void MultiplyTile(int32_t (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                         uint32_t b0, uint32_t b1) {
  emulator::MultiplyTile(c, {a0, a1, a2, a3}, {b0, b1});
}

template <typename Args>
int Launch(void (*kernel)(Args), Grid grid, uint32_t threads, size_t shared_bytes, void*,
           Args args) {
  struct Call {
    void (*kernel)(Args);
    const Args& args;
  } call = {kernel, args};
  emulator::Run(
      {grid.x, grid.y, grid.z}, threads, shared_bytes,
      [](const void* context) {
        const auto& c = *static_cast<const Call*>(context);
        c.kernel(c.args);
      },
      &call);
  return 0;
}

#endif

FIXPOINT_DEVICE int32_t Lane() { return ThreadX() & 31; }
FIXPOINT_DEVICE int32_t Warp() { return ThreadX() >> 5; }

// Two products over 64 bytes of depth. Each operand holds 16 consecutive bytes of its row a lane,
// at 16 * (lane % 4): not the order of MultiplyTile's contract, but the same order for both, and a
// sum does not care. That makes every load of an operand 16 bytes wide, from plain rows.
FIXPOINT_DEVICE void MultiplyTile64(int32_t (&c)[4], const Quad& low, const Quad& high,
                                    const Quad& b) {
  MultiplyTile(c, low.word[0], high.word[0], low.word[1], high.word[1], b.word[0], b.word[1]);
  MultiplyTile(c, low.word[2], high.word[2], low.word[3], high.word[3], b.word[2], b.word[3]);
}

FIXPOINT_DEVICE int64_t ShuffleXor64(int64_t value, int32_t mask) {
  const auto bits = static_cast<uint64_t>(value);
  const auto low =
      static_cast<uint32_t>(ShuffleXor(static_cast<int32_t>(static_cast<uint32_t>(bits)), mask));
  const auto high = static_cast<uint32_t>(
      ShuffleXor(static_cast<int32_t>(static_cast<uint32_t>(bits >> 32)), mask));
  return static_cast<int64_t>(static_cast<uint64_t>(high) << 32 | low);
}

}  // namespace fixpoint::FIXPOINT_CUDA_NAMESPACE
