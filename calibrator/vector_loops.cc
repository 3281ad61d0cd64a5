#include "calibrator/vector_loops.h"

#include <cmath>

namespace fixpoint {

namespace baseline_level {
extern const VectorLoops kLoops;
}
#ifdef __x86_64__
namespace avx2_level {
extern const VectorLoops kLoops;
}
namespace avx512_level {
extern const VectorLoops kLoops;
}
#endif

std::vector<const VectorLoops*> SupportedVectorLoops() {
  std::vector<const VectorLoops*> levels = {&baseline_level::kLoops};
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    levels.push_back(&avx2_level::kLoops);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
      levels.push_back(&avx512_level::kLoops);
    }
  }
#endif
  return levels;
}

const VectorLoops& Vec() {
  static const VectorLoops& best = *SupportedVectorLoops().back();
  return best;
}

double BinMagnitude(int32_t bin) {
  const int32_t octave = bin / kBinsPerOctave;
  const double position = (bin % kBinsPerOctave + 0.5) / kBinsPerOctave;
  return std::ldexp(1 + position, octave - 16);
}

}  // namespace fixpoint
