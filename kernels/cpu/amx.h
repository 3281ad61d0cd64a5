// The functions of the "amx" table (levels.h) that differ from the vnni level. Weights are packed
// as the vnni level does.
#pragma once

#include "kernels/ops.h"

namespace fixpoint::amx {

// Loads the tile configuration that Linear expects into this thread.
void ThreadInit();
void Linear(const LinearArgs& args);

}  // namespace fixpoint::amx
