#include "calibrator/vector_loops.h"

#define FIXPOINT_LEVEL avx512_level
#define FIXPOINT_LEVEL_NAME "avx512"
#include "calibrator/vector_loops.inc"
