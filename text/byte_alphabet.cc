#include "text/byte_alphabet.h"

#include <array>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "text/utf8.h"

namespace fixpoint {
namespace {

constexpr int kAlphabetEnd = 0x100 + 68;

struct Alphabet {
  std::array<int16_t, 256> character_of_byte;
  std::array<int16_t, kAlphabetEnd> byte_of_character;
};

constexpr bool StandsForItself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr Alphabet MakeAlphabet() {
  Alphabet a{};
  for (auto& byte : a.byte_of_character) byte = -1;
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const int character = StandsForItself(byte) ? byte : next++;
    a.character_of_byte[byte] = static_cast<int16_t>(character);
    a.byte_of_character[character] = static_cast<int16_t>(byte);
  }
  return a;
}

constexpr Alphabet kAlphabet = MakeAlphabet();
static_assert(kAlphabet.character_of_byte[0x20] == 0x120);
static_assert(kAlphabet.character_of_byte[0xAD] == kAlphabetEnd - 1);

}  // namespace

absl::StatusOr<std::string> BytesFromAlphabet(absl::string_view spelled) {
  if (!IsValidUtf8(spelled)) return absl::InvalidArgumentError("token is not valid UTF-8");
  std::string bytes;
  bytes.reserve(spelled.size());
  for (size_t i = 0; i < spelled.size();) {
    const CodePoint c = ReadCodePoint(spelled, i);
    if (c.value >= kAlphabetEnd || kAlphabet.byte_of_character[c.value] < 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "token \"", spelled.substr(0, 64), "\" holds ", absl::StrFormat("U+%04X", c.value),
          ", which is no character of the byte alphabet"));
    }
    bytes.push_back(static_cast<char>(kAlphabet.byte_of_character[c.value]));
    i += c.length;
  }
  return bytes;
}

std::string AlphabetFromBytes(absl::string_view bytes) {
  std::string spelled;
  for (const char byte : bytes) {
    AppendUtf8(kAlphabet.character_of_byte[static_cast<uint8_t>(byte)], &spelled);
  }
  return spelled;
}

}  // namespace fixpoint
