// The elementwise loops of the float forward pass and of the evaluation, compiled once per vector
// level (baseline, AVX2 with FMA, AVX-512) and chosen by the CPU at the first call. Results of
// different levels agree to float32 rounding, not bit for bit. All functions are thread-safe,
// allocate nothing and trust their arguments. bf16 values are the upper halves of float32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fixpoint {

// Histogram of magnitudes: kBinsPerOctave bins an octave, linear inside it, from 2^-16 up to 2^16;
// smaller values are in bin 0 and larger ones in the last bin.
inline constexpr int32_t kHistogramBins = 1024;
inline constexpr int32_t kBinsPerOctave = 32;

// Sums over one row of two models' logits a (teacher) and b.
struct RowComparison {
  double log_sum_a = 0, log_sum_b = 0;  // log of the sum of exp
  double kl = 0;                        // sum softmax(a) * (log softmax(a) - log softmax(b)), nats
  int32_t argmax_a = 0, argmax_b = 0;   // lowest index on ties
};

struct VectorLoops {
  const char* name;
  // out = x / sqrt(mean(x^2) + epsilon) * gain
  void (*rms_norm)(const float* x, const float* gain, int64_t n, float epsilon, float* out);
  void (*to_bf16)(const float* x, int64_t n, uint16_t* out);  // nearest, ties to even
  void (*from_bf16)(const uint16_t* x, int64_t n, float* out);
  // hi + lo equals x to about 2^-17
  void (*split_bf16)(const float* x, int64_t n, uint16_t* hi, uint16_t* lo);
  // q = clamp(round(x * inverse), -limit, limit), nearest, ties to even; limit <= 256, so bf16
  // holds q exactly
  void (*quantize_bf16)(const float* x, int64_t n, float inverse, float limit, uint16_t* out);
  // An int16 site: q in +-32512 as hi + lo / 256 with hi, lo in [-128, 127]; `inverse` is 256 /
  // scale
  void (*quantize_wide_bf16)(const float* x, int64_t n, float inverse, uint16_t* hi,
                             uint16_t* lo_256th);
  // out = unit * clamp(round(x * inverse), -limit, limit)
  void (*quantize)(const float* x, int64_t n, float inverse, float limit, float unit, float* out);
  // y = y * scale * row_scale + bias; row_scale and bias may be null
  void (*scale_bias)(float* y, int64_t n, float scale, const float* row_scale, const float* bias);
  void (*add)(float* y, const float* x, int64_t n);       // y += x
  void (*multiply)(float* y, const float* x, int64_t n);  // y *= x
  void (*abs_max_into)(const float* x, int64_t n,
                       float* largest);  // largest[i] = max(largest[i], |x[i]|)
  float (*abs_max)(const float* x, int64_t n);
  void (*histogram)(const float* x, int64_t n, uint32_t* counts);
  // x[i], x[i + half] rotated by cos[i], sin[i]
  void (*rope)(float* x, const float* cos, const float* sin, int64_t half);
  // Orthonormal Walsh-Hadamard transform (Sylvester order) of each run of `block` values; block is
  // a power of two
  void (*hadamard)(float* x, int64_t n, int64_t block);
  void (*silu_multiply)(const float* gate, const float* up, int64_t n, float* out);
  float (*max)(const float* x, int64_t n);
  // out = exp((x - max) * factor), returns the sum of what was written
  float (*exp_row)(const float* x, int64_t n, float max, float factor, float* out);
  float (*exp_row_bf16)(const float* x, int64_t n, float max, float factor, uint16_t* out);
  float (*dot)(const float* a, const float* b, int64_t n);
  void (*add_scaled)(float* y, const float* x, float factor, int64_t n);  // y += factor * x
  // Squared error of int8 rounding with a given step: sum (x - step * clamp(round(x / step)))^2
  double (*rounding_error)(const float* x, int64_t n, float step);
  // out = min(65535, round((max - x) * steps)), and back: x = -out * step
  void (*store_below_max)(const float* x, int64_t n, float max, float steps, uint16_t* out);
  void (*load_below_max)(const uint16_t* x, int64_t n, float step, float* out);
  RowComparison (*compare_rows)(const float* a, const float* b, int64_t n);
  // out = x * factors (null: 1)
  void (*scale_to)(const float* x, const float* factors, int64_t n, float* out);
  void (*scale_to_bf16)(const float* x, const float* factors, int64_t n, uint16_t* out);
  // Gradients, for training (gradient_loops.inc).
  //
  // Back through v = x * gain; y = step * clamp(round(v / step), -limit, limit), with rounding
  // taken as the identity and clipping as it is. Given v and dy = dL/dy:
  //   dx = dy * gain inside the clip, else 0; gain null: 1; may be dy itself
  //   returns sum of dy * dy/dlog(step): (y - v) inside, y outside
  //   gain_sums[i] += dL/dlog(gain), null: not wanted. `folded`: the consumer's weights are divided
  //   by the gain, so that y / gain counts: less dy * y
  float (*site_backward)(const float* v, const float* dy, const float* gain, int64_t n, float step,
                         float limit, bool folded, float* dx, float* gain_sums);
  // The same without rounding: gain_sums[i] += dy * v, dx = dy * gain.
  void (*gain_backward)(const float* v, const float* dy, const float* gain, int64_t n, float* dx,
                        float* gain_sums);
  // dx += dL/dx of rms_norm
  void (*rms_norm_backward)(const float* x, const float* gain, const float* dy, int64_t n,
                            float epsilon, float* dx);
  // d_gate and d_up of silu_multiply; each may be d_out itself but not both
  void (*silu_multiply_backward)(const float* gate, const float* up, const float* d_out, int64_t n,
                                 float* d_gate, float* d_up);
  // p = e * inverse_sum (in place of e), ds = p * (dp * unit - delta) (in place of dp)
  void (*softmax_backward)(float* e, float* dp, int64_t n, float inverse_sum, float unit,
                           float delta);
  // out = (softmax(b) - softmax(a)) * weight with given logs of the sums of exp; may be b. a null:
  // softmax(b) * weight
  void (*softmax_difference)(const float* a, const float* b, int64_t n, float log_sum_a,
                             float log_sum_b, float weight, float* out);
  // log of the sum of exp; *argmax: lowest index of the largest
  double (*log_sum_exp)(const float* x, int64_t n, int32_t* argmax);
};

// The best level that this CPU runs.
const VectorLoops& Vec();

// All levels that this CPU runs, slowest first.
std::vector<const VectorLoops*> SupportedVectorLoops();

// Magnitude in the middle of a histogram bin.
double BinMagnitude(int32_t bin);

}  // namespace fixpoint
