#include "engine/cuda_graphs.h"

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace fixpoint {

absl::Status CudaGraphs::Run(const CudaBucket& bucket, absl::FunctionRef<absl::Status()> enqueue) {
  const auto [entry, is_first] = graphs_.try_emplace(bucket, kNotCaptured);
  if (is_first) return enqueue();
  if (entry->second == kNotCaptured) {
    const absl::StatusOr<int32_t> graph = Capture(enqueue);
    if (!graph.ok()) {
      return Annotate(graph.status(),
                      absl::StrCat("capturing a CUDA graph of ", bucket.tokens, " tokens"));
    }
    entry->second = *graph;
  }
  return device_.LaunchGraph(entry->second);
}

absl::StatusOr<int32_t> CudaGraphs::Capture(absl::FunctionRef<absl::Status()> enqueue) {
  RETURN_IF_ERROR(device_.BeginCapture());
  const absl::Status enqueued = enqueue();
  absl::StatusOr<int32_t> graph = device_.EndCapture();
  RETURN_IF_ERROR(enqueued);
  return graph;
}

}  // namespace fixpoint
