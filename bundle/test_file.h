// Helpers of the bundle's tests: a folder of their own, files as strings, and forged files with
// fitting checksums.
#pragma once

#include <stdlib.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/digest.h"
#include "base/file.h"
#include "bundle/format.h"
#include "gtest/gtest.h"

namespace fixpoint {

class BundleFolderTest : public ::testing::Test {
 protected:
  BundleFolderTest() {
    std::string pattern = (std::filesystem::temp_directory_path() / "bundle_test.XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
    path_ = folder_ + "/model.fixpoint";
  }
  ~BundleFolderTest() override { std::filesystem::remove_all(folder_); }

  std::string FileBytes() const { return ReadWholeFile(path_, uint64_t{1} << 30).value(); }
  void SetFileBytes(const std::string& bytes) {
    ASSERT_TRUE(WriteFileAtomically(path_, bytes).ok());
  }
  int FilesInFolder() const {
    return static_cast<int>(std::distance(std::filesystem::directory_iterator(folder_), {}));
  }

  std::string folder_;
  std::string path_;
};

inline FileHeader HeaderOf(const std::string& file) {
  FileHeader header;
  CHECK_GE(file.size(), sizeof(header));
  std::memcpy(&header, file.data(), sizeof(header));
  return header;
}

inline std::string ManifestOf(const std::string& file) {
  const FileHeader header = HeaderOf(file);
  return file.substr(header.manifest_offset, header.manifest_bytes);
}

// Puts the header in place with a fitting checksum, then fitting chunk table and trailer behind
// `body`, which is everything before the chunk table. Only what a checksum cannot find is left
// wrong.
inline std::string Seal(std::string body, FileHeader header) {
  header.header_xxh3 = Xxh3_64(&header, sizeof(header) - sizeof(header.header_xxh3));
  std::memcpy(body.data(), &header, sizeof(header));
  std::string table;
  for (uint64_t begin = 0; begin < body.size(); begin += kChunkBytes) {
    const uint64_t hash =
        Xxh3_64(body.data() + begin, std::min<uint64_t>(kChunkBytes, body.size() - begin));
    table.append(reinterpret_cast<const char*>(&hash), sizeof(hash));
  }
  body += table;
  Sha256 sha;
  sha.Update(body);
  const Sha256Digest digest = sha.Finish();
  body.append(reinterpret_cast<const char*>(digest.data()), digest.size());
  return body;
}

inline std::string BodyOf(const std::string& file) {
  return file.substr(0, HeaderOf(file).chunk_table_offset);
}

// The same file with another manifest; all offsets and checksums are made to fit.
inline std::string WithManifest(const std::string& file, const std::string& manifest) {
  FileHeader header = HeaderOf(file);
  const std::string data = BodyOf(file).substr(header.data_offset);
  std::string body(kSectionAlign, '\0');
  body += manifest;
  body.resize((body.size() + kSectionAlign - 1) / kSectionAlign * kSectionAlign, '\0');
  header.manifest_bytes = manifest.size();
  header.data_offset = body.size();
  body += data;
  header.chunk_table_offset = body.size();
  header.chunk_count = (body.size() + kChunkBytes - 1) / kChunkBytes;
  return Seal(body, header);
}

inline std::string Replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t position = text.find(from);
  CHECK(position != std::string::npos) << "'" << from << "' is not there to be replaced";
  return text.replace(position, from.size(), to);
}

}  // namespace fixpoint
