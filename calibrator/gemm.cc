#include "calibrator/gemm.h"

#include <omp.h>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <memory>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "oneapi/dnnl/dnnl.hpp"

#include "base/aligned_buffer.h"
#include "base/check.h"

namespace fixpoint {
namespace {

// A tile's x rows (256 x 1536 in bf16: 768 KiB) and w panel stay in a 2 MiB L2.
constexpr int64_t kTileRows = 256;
constexpr int64_t kPanelOutputs = 512;
// Shapes kept prepared per thread. Windows and decoding use a few hundred.
constexpr size_t kMaxPrepared = 4096;

using Shape =
    std::tuple<GemmType, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, bool, bool>;

struct Prepared {
  dnnl::matmul primitive;
  dnnl::memory x, w, y, scratchpad;
};

// Everything of oneDNN that belongs to one thread. oneDNN's OpenMP runtime is told to use this
// thread only.
class ThreadState {
 public:
  ThreadState() : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) { omp_set_num_threads(1); }

  void Multiply(const GemmArgs& a) {
    Prepared& p = Find(a);
    p.x.set_data_handle(const_cast<void*>(a.x));
    p.w.set_data_handle(const_cast<void*>(a.w));
    p.y.set_data_handle(a.y);
    p.primitive.execute(stream_, {{DNNL_ARG_SRC, p.x},
                                  {DNNL_ARG_WEIGHTS, p.w},
                                  {DNNL_ARG_DST, p.y},
                                  {DNNL_ARG_SCRATCHPAD, p.scratchpad}});
    stream_.wait();
  }

 private:
  Prepared& Find(const GemmArgs& a) {
    const Shape shape{a.type,     a.rows,     a.outputs,    a.depth,     a.x_stride,
                      a.w_stride, a.y_stride, a.w_by_depth, a.accumulate};
    const auto found = prepared_.find(shape);
    if (found != prepared_.end()) return *found->second;
    if (prepared_.size() >= kMaxPrepared) prepared_.clear();
    return *prepared_.emplace(shape, Prepare(a)).first->second;
  }

  std::unique_ptr<Prepared> Prepare(const GemmArgs& a) {
    using dnnl::memory;
    const memory::data_type type =
        a.type == GemmType::kBf16 ? memory::data_type::bf16 : memory::data_type::f32;
    const memory::desc x({a.rows, a.depth}, type, memory::dims{a.x_stride, 1});
    const memory::desc w({a.depth, a.outputs}, type,
                         a.w_by_depth ? memory::dims{a.w_stride, 1} : memory::dims{1, a.w_stride});
    const memory::desc y({a.rows, a.outputs}, memory::data_type::f32, memory::dims{a.y_stride, 1});
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (a.accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0f);
      attributes.set_post_ops(sum);
    }
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(x, w, y), attributes,
                                                   engine_);
    auto prepared = std::make_unique<Prepared>();
    prepared->primitive = dnnl::matmul(description);
    prepared->x = memory(x, engine_, nullptr);
    prepared->w = memory(w, engine_, nullptr);
    prepared->y = memory(y, engine_, nullptr);
    // One scratchpad per thread, as large as the largest need so far.
    const size_t bytes = description.scratchpad_desc().get_size();
    if (bytes > scratchpad_.size_bytes()) {
      scratchpad_ = AlignedBuffer(bytes);
      for (auto& [shape, other] : prepared_) other->scratchpad.set_data_handle(scratchpad_.data());
    }
    prepared->scratchpad = memory(description.scratchpad_desc(), engine_, scratchpad_.data());
    return prepared;
  }

  dnnl::engine engine_;
  dnnl::stream stream_;
  AlignedBuffer scratchpad_;
  absl::flat_hash_map<Shape, std::unique_ptr<Prepared>> prepared_;
};

void RunTile(const GemmArgs& args) {
  // The arguments are our own, so a failure here is a lack of memory or a bug: neither can be
  // handled by a caller.
  try {
    static thread_local ThreadState state;
    state.Multiply(args);
  } catch (const std::exception& e) {
    CHECK(false) << "oneDNN matmul " << args.rows << " x " << args.outputs << " x " << args.depth
                 << ": " << e.what();
  }
}

class CpuGemm : public FloatGemm {
 public:
  explicit CpuGemm(ThreadPool& pool) : pool_(pool) {
    fast_bf16_ = dnnl_get_effective_cpu_isa() == dnnl_cpu_isa_avx512_core_amx;
  }

  bool fast_bf16() const override { return fast_bf16_; }

  void Multiply(const GemmArgs& args) override {
    if (args.rows == 0 || args.outputs == 0) return;
    // Panels of equal width, at least two: at one row block (decoding) they are what the threads
    // share.
    const int64_t panels = std::max<int64_t>(2, (args.outputs + kPanelOutputs - 1) / kPanelOutputs);
    const int64_t width = ((args.outputs + panels - 1) / panels + 31) / 32 * 32;
    const int64_t num_panels = (args.outputs + width - 1) / width;
    const int64_t blocks = (args.rows + kTileRows - 1) / kTileRows;
    // Row blocks of one panel follow each other, so that the panel is read from memory once.
    pool_.ParallelFor(blocks * num_panels, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t tile = begin; tile < end; ++tile) {
        MultiplyHere(Tile(args, tile % blocks * kTileRows, tile / blocks * width, width));
      }
    });
  }

  void MultiplyHere(const GemmArgs& args) override {
    CHECK(args.type == GemmType::kFloat32 || fast_bf16_) << "bf16 products on a CPU without them";
    RunTile(args);
  }

 private:
  static GemmArgs Tile(const GemmArgs& args, int64_t row, int64_t output, int64_t width) {
    const int64_t bytes = BytesOf(args.type);
    GemmArgs tile = args;
    tile.rows = std::min(kTileRows, args.rows - row);
    tile.outputs = std::min(width, args.outputs - output);
    tile.x = static_cast<const std::byte*>(args.x) + row * args.x_stride * bytes;
    tile.w = static_cast<const std::byte*>(args.w) +
             output * (args.w_by_depth ? 1 : args.w_stride) * bytes;
    tile.y = args.y + row * args.y_stride + output;
    return tile;
  }

  ThreadPool& pool_;
  bool fast_bf16_ = false;
};

}  // namespace

std::unique_ptr<FloatGemm> CreateCpuGemm(ThreadPool& pool) {
  return std::make_unique<CpuGemm>(pool);
}

}  // namespace fixpoint
