// From a checked bundle to a model that can be served.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "bundle/bundle.h"
#include "server/served_model.h"

namespace fixpoint {

struct LoadOptions {
  std::string device = "cpu";        // or "cuda:N" in a build with CUDA
  int tensor_parallel = 1;           // GPUs from N on that share the model: 1, 2, 4 or 8
  std::string cuda_algorithm_cache;  // file of engine/algorithm_cache.h; "": none
  int threads = 0;                   // 0: every CPU that the process may use
  bool pin_threads = false;          // but the engine's own to a CPU each
  int64_t kv_cache_bytes = 0;  // 0: AutomaticKvCacheBytes; on a GPU nine tenths of what is free
  int max_queue_requests = 256;
  int64_t max_queue_tokens = 1 << 20;
  absl::Duration max_queue_time = absl::InfiniteDuration();
  int max_running = 64;
  absl::Duration self_test_budget = absl::Seconds(2);  // of the golden run; see self_test.h
};

// OK for devices that this build can serve on, whether or not this machine has them.
// INVALID_ARGUMENT names the option.
absl::Status CheckDevice(const std::string& device, int tensor_parallel);

// Half of the free memory, but no more than max_running sequences of full length take, and no less
// than one. Pages cost memory once they are used.
int64_t AutomaticKvCacheBytes(const IntegerModel& model, int max_running, int64_t free_bytes);

// Packs the weights, allocates the KV cache, tests itself (server/self_test.h) and starts the
// engine thread. `name` is what callers see; `observer` must outlive the result.
absl::StatusOr<std::shared_ptr<ServedModel>> LoadModel(Bundle bundle, const std::string& name,
                                                       const LoadOptions& options,
                                                       EngineObserver* observer);

// "/models/smollm2.fixpoint" -> "smollm2".
std::string ModelName(const std::string& path);

}  // namespace fixpoint
