#include "calibrator/forward_weights.h"

#include <algorithm>

#include "base/check.h"
#include "calibrator/vector_loops.h"

namespace fixpoint {
namespace {

class Builder {
 public:
  Builder(WeightKind kind, const FloatGemm& gemm, ThreadPool& pool)
      : kind_(kind), bf16_(gemm.fast_bf16()), pool_(pool) {}

  ForwardLinear Linear(const Matrix& w, const std::vector<float>& bias) {
    ForwardLinear linear = Shape(w, bias);
    if (kind_ == WeightKind::kInt8) {
      linear.steps = Steps(w);
    } else if (linear.type == GemmType::kFloat32) {
      linear.float_view = w.data.data();
      return linear;
    }
    Allocate(&linear);
    pool_.ParallelFor(w.rows, 16, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) FillRow(w, r, &linear);
    });
    return linear;
  }

  // Rows [first, first + w.rows) of int8 weights that were made of w.
  ForwardLinear Integers(const Matrix& w, const std::vector<float>& bias,
                         const std::vector<int8_t>& weights, int64_t first) {
    ForwardLinear linear = Shape(w, bias);
    linear.steps.resize(w.rows);
    Allocate(&linear);
    pool_.ParallelFor(w.rows, 16, [&](int64_t begin, int64_t end, int) {
      std::vector<float> row(w.cols);
      for (int64_t r = begin; r < end; ++r) {
        const int8_t* q = weights.data() + (first + r) * w.cols;
        linear.steps[r] = static_cast<float>(FitStep(w.row(r), q, w.cols));
        std::copy(q, q + w.cols, row.begin());
        if (linear.type == GemmType::kBf16)
          Vec().to_bf16(row.data(), w.cols, linear.bf16_values.data() + r * w.cols);
        else
          std::copy(row.begin(), row.end(), linear.float_values.begin() + r * w.cols);
      }
    });
    return linear;
  }

  std::vector<float> Steps(const Matrix& w) {
    std::vector<float> result(w.rows);
    pool_.ParallelFor(w.rows, 16, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r)
        result[r] = static_cast<float>(Int8RowStep(w.row(r), w.cols));
    });
    return result;
  }

  std::vector<float> FitSteps(const Matrix& w, const std::vector<int8_t>& weights) {
    std::vector<float> result(w.rows);
    pool_.ParallelFor(w.rows, 16, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) {
        result[r] = static_cast<float>(FitStep(w.row(r), weights.data() + r * w.cols, w.cols));
      }
    });
    return result;
  }

 private:
  ForwardLinear Shape(const Matrix& w, const std::vector<float>& bias) const {
    ForwardLinear linear;
    linear.outputs = w.rows;
    linear.depth = w.cols;
    linear.bias = bias.empty() ? nullptr : bias.data();
    linear.type = bf16_ && kind_ != WeightKind::kFloat32 ? GemmType::kBf16 : GemmType::kFloat32;
    return linear;
  }

  static void Allocate(ForwardLinear* linear) {
    const size_t values = static_cast<size_t>(linear->outputs) * linear->depth;
    if (linear->type == GemmType::kBf16)
      linear->bf16_values.resize(values);
    else
      linear->float_values.resize(values);
  }

  // w = step * q in the least squares sense, over the unclipped weights unless all are.
  static double FitStep(const float* w, const int8_t* q, int64_t n) {
    double product = 0, square = 0, clipped_product = 0, clipped_square = 0;
    for (int64_t i = 0; i < n; ++i) {
      const bool clipped = q[i] == 127 || q[i] == -127;
      (clipped ? clipped_product : product) += static_cast<double>(w[i]) * q[i];
      (clipped ? clipped_square : square) += static_cast<double>(q[i]) * q[i];
    }
    if (square > 0) return product / square;
    return clipped_square > 0 ? clipped_product / clipped_square : 1e-8;
  }

  void FillRow(const Matrix& w, int64_t r, ForwardLinear* linear) {
    const int64_t offset = r * w.cols;
    if (kind_ == WeightKind::kBf16) {
      Vec().to_bf16(w.row(r), w.cols, linear->bf16_values.data() + offset);
    } else if (linear->type == GemmType::kBf16) {
      Vec().quantize_bf16(w.row(r), w.cols, 1 / linear->steps[r], 127,
                          linear->bf16_values.data() + offset);
    } else {
      Vec().quantize(w.row(r), w.cols, 1 / linear->steps[r], 127, 1,
                     linear->float_values.data() + offset);
    }
  }

  const WeightKind kind_;
  const bool bf16_;
  ThreadPool& pool_;
};

}  // namespace

double Int8RowStep(const float* row, int64_t n) {
  const double largest = Vec().abs_max(row, n);
  if (largest == 0) return 1e-8;
  double best_step = largest / 127;
  double best_error = Vec().rounding_error(row, n, static_cast<float>(best_step));
  for (const double factor : {0.95, 0.9, 0.85, 0.8}) {
    const double step = largest * factor / 127;
    const double error = Vec().rounding_error(row, n, static_cast<float>(step));
    if (error < best_error) {
      best_error = error;
      best_step = step;
    }
  }
  return best_step;
}

namespace {

const std::vector<float> kNoBias;

// All linears of a layer, each made by linear(matrix, bias, index of the matrix in the order
// below).
template <typename MakeLinear>
ForwardLayer MakeLayer(const FloatLayer& from, MakeLinear&& linear) {
  ForwardLayer layer;
  layer.attn_norm = from.attn_norm.data();
  layer.mlp_norm = from.mlp_norm.data();
  layer.q = linear(from.q_proj, from.q_bias, 0);
  layer.k = linear(from.k_proj, from.k_bias, 1);
  layer.v = linear(from.v_proj, from.v_bias, 2);
  layer.o = linear(from.o_proj, kNoBias, 3);
  layer.gate = linear(from.gate_proj, kNoBias, 4);
  layer.up = linear(from.up_proj, kNoBias, 5);
  layer.down = linear(from.down_proj, kNoBias, 6);
  return layer;
}

}  // namespace

ForwardModel MakeForwardModel(const FloatModel& model, const OnlineTransforms& online,
                              WeightKind kind, const FloatGemm& gemm, ThreadPool& pool) {
  Builder builder(kind, gemm, pool);
  ForwardModel result;
  result.source = &model;
  result.online = online;
  result.kind = kind;
  if (kind == WeightKind::kInt8) result.embedding_steps = builder.Steps(model.embedding);
  for (const FloatLayer& layer : model.layers) {
    result.layers.push_back(MakeLayer(layer, [&](const Matrix& w, const std::vector<float>& bias,
                                                 int) { return builder.Linear(w, bias); }));
  }
  result.head = builder.Linear(model.head_or_embedding(), kNoBias);
  return result;
}

ForwardModel MakeIntegerForwardModel(const IntegerModel& integers, const FloatModel& rotated,
                                     const FloatGemm& gemm, ThreadPool& pool) {
  Builder builder(WeightKind::kInt8, gemm, pool);
  ForwardModel result;
  result.source = &rotated;
  result.online = {.down_block = integers.config.down_hadamard_block,
                   .qk_hadamard = integers.config.qk_hadamard};
  result.kind = WeightKind::kInt8;
  CHECK_EQ(integers.embedding.size(), rotated.embedding.data.size());
  CHECK_EQ(integers.layers.size(), rotated.layers.size());
  result.embedding_steps = builder.FitSteps(rotated.embedding, integers.embedding);
  for (size_t i = 0; i < rotated.layers.size(); ++i) {
    const FloatLayer& from = rotated.layers[i];
    const ModelLayer& to = integers.layers[i];
    const std::vector<int8_t>* weights[] = {
        &to.qkv.weights,     &to.qkv.weights,     &to.qkv.weights,      &to.o_proj.weights,
        &to.gate_up.weights, &to.gate_up.weights, &to.down_proj.weights};
    const int64_t first[] = {
        0, from.q_proj.rows, from.q_proj.rows + from.k_proj.rows, 0, 0, from.gate_proj.rows, 0};
    result.layers.push_back(
        MakeLayer(from, [&](const Matrix& w, const std::vector<float>& bias, int index) {
          CHECK_LE((first[index] + w.rows) * w.cols, static_cast<int64_t>(weights[index]->size()));
          return builder.Integers(w, bias, *weights[index], first[index]);
        }));
  }
  result.head = builder.Integers(rotated.head_or_embedding(), kNoBias, integers.head.weights, 0);
  return result;
}

}  // namespace fixpoint
