// The tables of the CPU levels. Calling a function of a table on a CPU without that level ends in
// SIGILL: ask dispatch.h.
#pragma once

#include "kernels/ops.h"

namespace fixpoint {

const Ops& PortableOps();  // plain C++ for any CPU
#ifdef FIXPOINT_X86_LEVELS
const Ops& Avx2Ops();
const Ops& VnniOps();  // AVX-512 F, BW, DQ, VL and VNNI
const Ops& AmxOps();   // all of VnniOps, and AMX int8 tiles for many tokens
#endif
#ifdef FIXPOINT_ARM_LEVELS
const Ops& NeonOps();  // NEON with dotprod (sdot)
const Ops& I8mmOps();  // all of NeonOps, and matrix products of bytes (smmla)
#endif

}  // namespace fixpoint
