// int8 matrix products with smmla: each multiplies 2 rows x 8 inputs by 2 outputs x 8 inputs.
#include "kernels/cpu/neon.h"
#include "kernels/cpu/neon_linear_panels.h"

namespace fixpoint::i8mm {

size_t PackedWeightBytes(int32_t outputs, int32_t depth) {
  return PanelWeightBytes(outputs, depth);
}

void PackWeights(const int8_t* weights, int32_t outputs, int32_t depth, int32_t output_begin,
                 int32_t output_end, void* packed) {
  PackPanels(weights, outputs, depth, output_begin, output_end, MatrixSums<1>::kInputs,
             static_cast<int8_t*>(packed));
}

void Linear(const LinearArgs& args) { LinearPanels<MatrixSums>(args); }

}  // namespace fixpoint::i8mm
