// What the machine's cores can multiply, to say which share of it a training used.
#pragma once

#include "base/thread_pool.h"

namespace fixpoint {

// Floating-point operations a second (a product and its addition are two) of all threads of the
// pool at once, from registers alone: tile products of bf16 with AMX, else float32 multiply-adds of
// the widest vectors. Measured in about 0.1 s; what other processes take is missing from it. `bf16`
// only where FloatGemm::fast_bf16.
double MeasureProductPeak(bool bf16, ThreadPool& pool);

}  // namespace fixpoint
