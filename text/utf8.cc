#include "text/utf8.h"

#include <cstring>

namespace fixpoint {
namespace {

// Bytes of the sequence that `lead` opens, 0 for a byte that opens none.
int SequenceLength(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;
  if (lead < 0xE0) return 2;
  if (lead < 0xF0) return 3;
  return lead < 0xF5 ? 4 : 0;
}

// The second byte carries all the rules against overlong forms, surrogates and values above
// U+10FFFF.
bool SecondByteFits(uint8_t lead, uint8_t second) {
  if (lead == 0xE0) return second >= 0xA0 && second <= 0xBF;
  if (lead == 0xED) return second >= 0x80 && second <= 0x9F;
  if (lead == 0xF0) return second >= 0x90 && second <= 0xBF;
  if (lead == 0xF4) return second >= 0x80 && second <= 0x8F;
  return second >= 0x80 && second <= 0xBF;
}

uint8_t ByteAt(absl::string_view text, size_t i) { return static_cast<uint8_t>(text[i]); }

}  // namespace

Utf8Front ClassifyUtf8(absl::string_view bytes) {
  const uint8_t lead = ByteAt(bytes, 0);
  const size_t length = SequenceLength(lead);
  if (length == 0) return {Utf8Prefix::kInvalid, 1};
  for (size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {Utf8Prefix::kIncomplete, i};
    const uint8_t next = ByteAt(bytes, i);
    if (i == 1 ? !SecondByteFits(lead, next) : (next & 0xC0) != 0x80) {
      return {Utf8Prefix::kInvalid, i};
    }
  }
  return {Utf8Prefix::kValid, length};
}

bool IsValidUtf8(absl::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    uint64_t eight;
    if (text.size() - i >= sizeof eight) {
      std::memcpy(&eight, text.data() + i, sizeof eight);
      if ((eight & 0x8080808080808080u) == 0) {
        i += sizeof eight;
        continue;
      }
    }
    const Utf8Front front = ClassifyUtf8(text.substr(i));
    if (front.kind != Utf8Prefix::kValid) return false;
    i += front.length;
  }
  return true;
}

CodePoint ReadCodePoint(absl::string_view text, size_t position) {
  const uint32_t lead = ByteAt(text, position);
  if (lead < 0x80) return {lead, 1};
  auto low = [&](size_t i) -> uint32_t { return ByteAt(text, position + i) & 0x3F; };
  if (lead < 0xE0) return {(lead & 0x1F) << 6 | low(1), 2};
  if (lead < 0xF0) return {(lead & 0x0F) << 12 | low(1) << 6 | low(2), 3};
  return {(lead & 0x07) << 18 | low(1) << 12 | low(2) << 6 | low(3), 4};
}

size_t PreviousCodePoint(absl::string_view text, size_t position) {
  do {
    --position;
  } while (position > 0 && (ByteAt(text, position) & 0xC0) == 0x80);
  return position;
}

void AppendUtf8(uint32_t code_point, std::string* out) {
  auto put = [&](uint32_t byte) { out->push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | code_point >> 6);
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | code_point >> 12);
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | code_point >> 18);
    put(0x80 | (code_point >> 12 & 0x3F));
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
}

}  // namespace fixpoint
