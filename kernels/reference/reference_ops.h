// The specification as a kernel level: every function of ops.h written down plainly, one value at a
// time. Slow on purpose; other levels are right when they give the same bits.
#pragma once

#include "kernels/ops.h"

namespace fixpoint {

// The table named "reference". Packed weights are a plain row-major copy. Runs on any CPU; needs no
// thread_init.
const Ops& ReferenceOps();

}  // namespace fixpoint
