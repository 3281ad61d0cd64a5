// int8 matrix products with sdot: each multiplies 4 outputs x 4 inputs of weights by 4 inputs of a
// row.
#include "kernels/cpu/neon.h"
#include "kernels/cpu/neon_linear_panels.h"

namespace fixpoint::neon {

size_t PackedWeightBytes(int32_t outputs, int32_t depth) {
  return PanelWeightBytes(outputs, depth);
}

void PackWeights(const int8_t* weights, int32_t outputs, int32_t depth, int32_t output_begin,
                 int32_t output_end, void* packed) {
  PackPanels(weights, outputs, depth, output_begin, output_end, DotSums<1>::kInputs,
             static_cast<int8_t*>(packed));
}

void Linear(const LinearArgs& args) { LinearPanels<DotSums>(args); }

}  // namespace fixpoint::neon
