// Reading and writing a model bundle (docs/BUNDLE.md; constants in bundle/format.h).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bundle/model.h"
#include "text/tokenizer_spec.h"

namespace fixpoint {

// One activation site: what the calibrator decided, for `inspect` and reports. The engine does not
// read it.
struct SiteInfo {
  std::string name;         // "layers.3.down_in"
  int32_t bits = 8;         // 8 or 16
  std::string granularity;  // "tensor", "head" or "channel"
  std::string scale;        // decimal text of the (largest) scale: real = scale * q
};

// Everything in one bundle.
struct Bundle {
  IntegerModel model;
  TokenizerSpec tokenizer;
  std::string chat_template;  // Jinja source, empty: none
  std::vector<SiteInfo> sites;
  // One JSON object written by the calibrator (source digest, corpus digest, settings, measured
  // figures). Kept as text: the engine never interprets it.
  std::string provenance_json = "{}";
  std::string golden_digest;  // hex SHA-256 of the golden logits (engine/golden.h), empty before
                              // the verification

  // Filled by ReadBundle.
  std::string digest;  // hex SHA-256 of the file without its trailer: the bundle's identity
  uint64_t file_bytes = 0;
};

// Writes to a temporary file beside `path`, fsyncs, renames, fsyncs the directory. On any error the
// temporary file is removed and an older bundle under `path` is untouched. Returns the digest.
absl::StatusOr<std::string> WriteBundle(const Bundle& bundle, const std::string& path);

// Reads with pread into owned memory (never mmap), verifying the header, every chunk's checksum,
// the file's SHA-256 and all ranges. Errors are DATA_LOSS (or NOT_FOUND) and name the file and the
// section. `threads` share the hashing.
absl::StatusOr<Bundle> ReadBundle(const std::string& path, int threads = 2);

// True when the file starts with the bundle's magic: tells a bundle from a checkpoint.
bool LooksLikeBundle(const std::string& path);

}  // namespace fixpoint
