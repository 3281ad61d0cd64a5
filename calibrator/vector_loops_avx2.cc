#include "calibrator/vector_loops.h"

#define FIXPOINT_LEVEL avx2_level
#define FIXPOINT_LEVEL_NAME "avx2"
#include "calibrator/vector_loops.inc"
