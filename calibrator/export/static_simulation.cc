#include "calibrator/export/static_simulation.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "calibrator/vector_loops.h"

namespace fixpoint {

void StaticInputGemm::Replace(const void* w, GemmType type, const IntegerLinear& integers,
                              const ExportSite* site) {
  Linear linear;
  linear.steps = integers.steps;
  linear.site = site;
  std::vector<float> values(integers.values.begin(), integers.values.end());
  if (type == GemmType::kBf16) {
    linear.bf16_values.resize(values.size());
    Vec().to_bf16(values.data(), static_cast<int64_t>(values.size()), linear.bf16_values.data());
  } else {
    linear.float_values = std::move(values);
  }
  linears_[w] = std::move(linear);
}

// Rounded with ties to even and clipped as integers are: -128 is a value of int8.
void StaticInputGemm::QuantizeInput(const GemmArgs& args, float scale) {
  const int64_t n = args.depth;
  pool_.ParallelFor(args.rows, 8, [&](int64_t begin, int64_t end, int) {
    std::vector<float> row(static_cast<size_t>(n));
    for (int64_t r = begin; r < end; ++r) {
      if (args.type == GemmType::kBf16)
        Vec().from_bf16(static_cast<const uint16_t*>(args.x) + r * args.x_stride, n, row.data());
      else
        std::copy_n(static_cast<const float*>(args.x) + r * args.x_stride, n, row.data());
      for (float& x : row) x = std::clamp(std::nearbyint(x / scale), -128.0f, 127.0f);
      if (args.type == GemmType::kBf16)
        Vec().to_bf16(row.data(), n, input_.as<uint16_t>() + r * n);
      else
        std::copy_n(row.data(), n, input_.as<float>() + r * n);
    }
  });
}

void StaticInputGemm::Multiply(const GemmArgs& args) {
  const auto found = linears_.find(args.w);
  if (found == linears_.end() || !found->second.site->quantized) {
    gemm_.Multiply(args);
    return;
  }
  const Linear& linear = found->second;
  const bool bf16 = args.type == GemmType::kBf16;
  CHECK(bf16 != linear.bf16_values.empty());
  CHECK(!args.accumulate && !args.w_by_depth && args.w_stride == args.depth);
  CHECK_EQ(args.outputs, static_cast<int64_t>(linear.steps.size()));
  const size_t bytes = static_cast<size_t>(args.rows * args.depth * BytesOf(args.type));
  if (input_.size_bytes() < bytes) input_ = AlignedBuffer(bytes);
  const float scale = linear.site->scale;
  QuantizeInput(args, scale);
  GemmArgs product = args;
  product.x = input_.data();
  product.x_stride = args.depth;
  product.w = bf16 ? static_cast<const void*>(linear.bf16_values.data())
                   : static_cast<const void*>(linear.float_values.data());
  gemm_.Multiply(product);
  pool_.ParallelFor(args.rows, 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r)
      Vec().scale_bias(args.y + r * args.y_stride, args.outputs, scale, linear.steps.data(),
                       nullptr);
  });
}

StaticSimulation::StaticSimulation(const ExportModel& model, FloatGemm& gemm, ThreadPool& pool)
    : gemm_(gemm, pool), model_(MakeForwardModel(model.model, {}, WeightKind::kBf16, gemm, pool)) {
  CHECK_EQ(model.sites.size(), model_.layers.size());
  for (size_t i = 0; i < model_.layers.size(); ++i) {
    const ForwardLayer& layer = model_.layers[i];
    const ForwardLinear* linears[kExportLinears] = {&layer.q,    &layer.k,  &layer.v,   &layer.o,
                                                    &layer.gate, &layer.up, &layer.down};
    for (int32_t j = 0; j < kExportLinears; ++j) {
      const int32_t site = static_cast<int32_t>(kExportLinearList[j].site);
      gemm_.Replace(linears[j]->values(), linears[j]->type, model.integers[i][j],
                    &model.sites[i][site]);
    }
  }
  forward_ = std::make_unique<FloatForward>(model_, gemm_, pool);
}

}  // namespace fixpoint
