// What the files of the amx level share.
#pragma once

#include "kernels/cpu/vnni_common.h"

namespace fixpoint {
namespace {

// The tile intrinsics do not tell the compiler that they read or write memory.
FIXPOINT_INLINE void MemoryBarrier() { __asm__ volatile("" ::: "memory"); }

}  // namespace
}  // namespace fixpoint
