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

  ForwardLinear Integers(const Matrix& w, const std::vector<float>& bias,
                         const IntegerLinear& integers) {
    CHECK(integers.outputs == w.rows && integers.depth == w.cols)
        << integers.outputs << ", " << integers.depth;
    ForwardLinear linear = Shape(w, bias);
    linear.steps = integers.steps;
    Allocate(&linear);
    pool_.ParallelFor(w.rows, 16, [&](int64_t begin, int64_t end, int) {
      std::vector<float> row(w.cols);
      for (int64_t r = begin; r < end; ++r) {
        const int8_t* q = integers.values.data() + r * w.cols;
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

// All linears of a layer, each made by linear(matrix, bias, index of the matrix in
// kLayerLinears).
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

ForwardModel MakeIntegerForwardModel(const IntegerWeights& weights, const FloatModel& rotated,
                                     const OnlineTransforms& online, const FloatGemm& gemm,
                                     ThreadPool& pool) {
  Builder builder(WeightKind::kInt8, gemm, pool);
  ForwardModel result;
  result.source = &rotated;
  result.online = online;
  result.kind = WeightKind::kInt8;
  CHECK_EQ(weights.embedding.steps.size(), static_cast<size_t>(rotated.embedding.rows));
  CHECK_EQ(weights.layers.size(), rotated.layers.size());
  result.embedding_steps = weights.embedding.steps;
  for (size_t i = 0; i < rotated.layers.size(); ++i) {
    result.layers.push_back(MakeLayer(
        rotated.layers[i], [&](const Matrix& w, const std::vector<float>& bias, int index) {
          return builder.Integers(w, bias, weights.layers[i].*kLayerLinears[index].integers);
        }));
  }
  result.head = builder.Integers(rotated.head_or_embedding(), kNoBias, weights.head);
  return result;
}

void ReplaceLinear(const IntegerLinear& from, ForwardLinear* to, ThreadPool& pool) {
  CHECK(from.outputs == to->outputs && from.depth == to->depth && to->float_view == nullptr);
  to->steps = from.steps;
  pool.ParallelFor(from.outputs, 16, [&](int64_t begin, int64_t end, int) {
    std::vector<float> row(from.depth);
    for (int64_t r = begin; r < end; ++r) {
      const int8_t* q = from.values.data() + r * from.depth;
      std::copy(q, q + from.depth, row.begin());
      if (to->type == GemmType::kBf16)
        Vec().to_bf16(row.data(), from.depth, to->bf16_values.data() + r * from.depth);
      else
        std::copy(row.begin(), row.end(), to->float_values.begin() + r * from.depth);
    }
  });
}

void ReplaceLayer(const IntegerLayerWeights& from, ForwardLayer* to, ThreadPool& pool) {
  ReplaceLinear(from.q, &to->q, pool);
  ReplaceLinear(from.k, &to->k, pool);
  ReplaceLinear(from.v, &to->v, pool);
  ReplaceLinear(from.o, &to->o, pool);
  ReplaceLinear(from.gate, &to->gate, pool);
  ReplaceLinear(from.up, &to->up, pool);
  ReplaceLinear(from.down, &to->down, pool);
}

}  // namespace fixpoint
