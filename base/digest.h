// Checksums: SHA-256 names things (bundles, goldens, receipts), XXH3 finds damage quickly.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"

namespace fixpoint {

using Sha256Digest = std::array<uint8_t, 32>;

// SHA-256 over any number of Updates. Movable; a moved-from object may only be assigned or
// destroyed. One thread at a time.
class Sha256 {
 public:
  Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  ~Sha256();

  void Update(const void* data, size_t num_bytes);
  void Update(absl::string_view text) { Update(text.data(), text.size()); }
  // The digest of everything so far; afterwards the object starts over as if new.
  Sha256Digest Finish();
  std::string FinishHex();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Lower-case hexadecimal of any bytes.
std::string HexEncode(const void* data, size_t num_bytes);
std::string Sha256Hex(absl::string_view text);
// True for 64 lower-case hexadecimal digits.
bool IsSha256Hex(absl::string_view text);

// XXH3, 64 bits, seed 0.
uint64_t Xxh3_64(const void* data, size_t num_bytes);

// The same over any number of Updates. One thread at a time; Reset starts over.
class Xxh3Stream {
 public:
  Xxh3Stream();
  ~Xxh3Stream();
  Xxh3Stream(const Xxh3Stream&) = delete;
  Xxh3Stream& operator=(const Xxh3Stream&) = delete;

  void Reset();
  void Update(const void* data, size_t num_bytes);
  uint64_t Digest() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fixpoint
