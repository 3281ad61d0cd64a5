// What `inspect` says about a bundle.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "bundle/bundle.h"

namespace fixpoint {

// Bytes of the file that belong together: one section, or those of all layers with the same name.
struct FilePart {
  std::string name;  // "embedding.weight", "layers.*.qkv.weight", "tokenizer"; what is none of
                     // the sections: "header, manifest and padding"
  int64_t sections = 0;
  uint64_t bytes = 0;
};

// In falling order of bytes; the sum is bundle.file_bytes.
std::vector<FilePart> FileParts(const Bundle& bundle);

// Share of the calibration text that saturates, by site; empty when the provenance has none.
std::map<std::string, double> SaturatedShares(const Bundle& bundle);

// "byte-level BPE, GPT-2 splitting".
std::string TokenizerName(const TokenizerSpec& spec);

// The provenance is read as far as it is understood: older calibrators, and other makers, leave
// parts out. `sites`: with a table of all sites.
std::string DescribeBundle(const Bundle& bundle, const std::string& path, bool sites);

}  // namespace fixpoint
