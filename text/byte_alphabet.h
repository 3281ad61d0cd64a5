// The printable byte alphabet of GPT-2: vocabularies of byte-level BPE spell each byte as one
// printable character. The 188 printable bytes of Latin-1 stand for themselves, the other 68 are
// U+0100 and up in rising order (0x20 is U+0120).
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fixpoint {

// The raw bytes that `spelled` (UTF-8) stands for. Error: invalid UTF-8 or a character outside the
// alphabet, as is usual for added tokens, which are written in plain text.
absl::StatusOr<std::string> BytesFromAlphabet(absl::string_view spelled);

// The reverse, for any bytes.
std::string AlphabetFromBytes(absl::string_view bytes);

}  // namespace fixpoint
