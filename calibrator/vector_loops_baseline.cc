#include "calibrator/vector_loops.h"

#define FIXPOINT_LEVEL baseline_level
#define FIXPOINT_LEVEL_NAME "baseline"
#include "calibrator/vector_loops.inc"
