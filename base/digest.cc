#include "base/digest.h"

#include <openssl/evp.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/check.h"

namespace fixpoint {

struct Sha256::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
  // OpenSSL fails here only without memory or without its default provider: the process cannot work
  // then.
  void Start() {
    CHECK(context != nullptr);
    CHECK_EQ(EVP_DigestInit_ex(context, EVP_sha256(), nullptr), 1);
  }
};

Sha256::Sha256() : state_(std::make_unique<State>()) { state_->Start(); }
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;
Sha256::~Sha256() = default;

void Sha256::Update(const void* data, size_t num_bytes) {
  CHECK_EQ(EVP_DigestUpdate(state_->context, data, num_bytes), 1);
}

Sha256Digest Sha256::Finish() {
  Sha256Digest digest;
  unsigned int length = 0;
  CHECK_EQ(EVP_DigestFinal_ex(state_->context, digest.data(), &length), 1);
  CHECK_EQ(length, digest.size());
  state_->Start();
  return digest;
}

std::string Sha256::FinishHex() {
  const Sha256Digest digest = Finish();
  return HexEncode(digest.data(), digest.size());
}

std::string HexEncode(const void* data, size_t num_bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  const auto* bytes = static_cast<const uint8_t*>(data);
  std::string hex(2 * num_bytes, '0');
  for (size_t i = 0; i < num_bytes; ++i) {
    hex[2 * i] = kDigits[bytes[i] >> 4];
    hex[2 * i + 1] = kDigits[bytes[i] & 15];
  }
  return hex;
}

std::string Sha256Hex(absl::string_view text) {
  Sha256 sha;
  sha.Update(text);
  return sha.FinishHex();
}

bool IsSha256Hex(absl::string_view text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == text.npos;
}

uint64_t Xxh3_64(const void* data, size_t num_bytes) { return XXH3_64bits(data, num_bytes); }

struct Xxh3Stream::State {
  XXH3_state_t xxh;
};

Xxh3Stream::Xxh3Stream() : state_(std::make_unique<State>()) { Reset(); }
Xxh3Stream::~Xxh3Stream() = default;
void Xxh3Stream::Reset() { XXH3_64bits_reset(&state_->xxh); }
void Xxh3Stream::Update(const void* data, size_t num_bytes) {
  XXH3_64bits_update(&state_->xxh, data, num_bytes);
}
uint64_t Xxh3Stream::Digest() const { return XXH3_64bits_digest(&state_->xxh); }

}  // namespace fixpoint
