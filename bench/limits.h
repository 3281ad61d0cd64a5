// What this machine can do at most, measured in the same run as what is compared with it.
#pragma once

#include "kernels/ops.h"

namespace fixpoint::bench {

// Bytes a second that `threads` threads together read out of a buffer far larger than any cache,
// each as eight interleaved streams, which is how the decode kernels read weights. Best of five.
double StreamingBandwidth(int threads);

// int8 operations a second (two for each multiplication) that `threads` threads together reach with
// the multiply instruction of this level and operands in registers: tdpbssd of amx, vpdpbusd of
// vnni, vpmaddubsw + vpmaddwd of avx2. Zero for other levels and processors. Best of five.
double MultiplyPeak(const Ops& ops, int threads);

}  // namespace fixpoint::bench
