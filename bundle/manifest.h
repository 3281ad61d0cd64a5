// The manifest: JSON between the file's header and its sections (docs/BUNDLE.md lists the keys).
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "bundle/bundle.h"
#include "bundle/sections.h"

namespace fixpoint {

inline constexpr int kMaxManifestDepth = 32;

// Everything of `bundle` but tensors and tokenizer, and the section table. Deterministic: equal
// input, equal bytes. Fails with INVALID_ARGUMENT when ParseManifest would refuse the result, so
// nothing unreadable is written.
absl::StatusOr<std::string> SerializeManifest(const Bundle& bundle,
                                              const std::vector<Section>& sections);

// The reverse: fills scalars, layer count, linear shapes and texts of `bundle` and leaves tensors
// and tokenizer empty. Strict: unknown, missing and repeated keys are refused by name, numbers must
// be integers in range, and the section table must be exactly the one that PlanSections makes of
// the config. INVALID_ARGUMENT names the key; FAILED_PRECONDITION: written for another numerics
// version.
absl::Status ParseManifest(absl::string_view json, Bundle* bundle, std::vector<Section>* sections);

}  // namespace fixpoint
