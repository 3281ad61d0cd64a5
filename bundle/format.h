// The file format's constants (docs/BUNDLE.md). All integers are little-endian.
//
//   0     FileHeader, 64 bytes, zero padded to kSectionAlign
//   ...   manifest: JSON, zero padded to kSectionAlign
//   ...   sections in manifest order, each starting at a multiple of kSectionAlign, gaps zero
//   ...   chunk table: XXH3-64 of each kChunkBytes piece of [0, chunk_table_offset), the last
//     shorter
//   end   32 bytes: SHA-256 of everything before
#pragma once

#include <cstdint>

namespace fixpoint {

inline constexpr char kBundleMagic[8] = {'F', 'I', 'X', 'P', 'O', 'I', 'N', 'T'};
inline constexpr uint32_t kBundleVersion = 1;
// Raised whenever a rule of docs/NUMERICS.md changes: same version, same bits.
inline constexpr uint32_t kNumericsVersion = 1;
inline constexpr uint64_t kSectionAlign = 4096;
inline constexpr uint64_t kChunkBytes = 1 << 20;
inline constexpr uint64_t kTrailerBytes = 32;
inline constexpr uint64_t kMaxManifestBytes = 16u << 20;
inline constexpr uint64_t kMaxSections = 1 << 16;
inline constexpr uint64_t kMaxBundleBytes = uint64_t{1} << 40;

struct FileHeader {
  char magic[8];
  uint32_t version;
  uint32_t numerics_version;
  uint64_t manifest_offset;  // kSectionAlign
  uint64_t manifest_bytes;
  uint64_t data_offset;  // first section
  uint64_t chunk_table_offset;
  uint64_t chunk_count;
  uint64_t header_xxh3;  // of the 56 bytes before
};
static_assert(sizeof(FileHeader) == 64);

}  // namespace fixpoint
