#include "server/field_checks.h"

#include "absl/strings/str_cat.h"
#include "text/utf8.h"

namespace fixpoint {

absl::Status OutOfRange(absl::string_view field, absl::string_view limit, absl::string_view value) {
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", value, " is outside the limit: ", limit));
}

absl::Status CheckText(absl::string_view field, absl::string_view text) {
  for (size_t position = 0; position < text.size();) {
    const Utf8Front front = ClassifyUtf8(text.substr(position));
    if (front.kind != Utf8Prefix::kValid) {
      return absl::InvalidArgumentError(absl::StrCat(field, ": invalid UTF-8 at byte ", position));
    }
    if (text[position] == '\0') {
      return absl::InvalidArgumentError(absl::StrCat(field, ": NUL at byte ", position));
    }
    position += front.length;
  }
  return absl::OkStatus();
}

absl::Status CheckBytes(absl::string_view field, size_t bytes, size_t least, size_t most) {
  if (bytes >= least && bytes <= most) return absl::OkStatus();
  return OutOfRange(field, absl::StrCat(least, " to ", most, " bytes"),
                    absl::StrCat(bytes, " bytes"));
}

absl::StatusOr<std::vector<int32_t>> CheckedIds(
    absl::string_view field, const google::protobuf::RepeatedField<uint32_t>& ids,
    int32_t vocab_size) {
  std::vector<int32_t> out;
  out.reserve(static_cast<size_t>(ids.size()));
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] >= static_cast<uint32_t>(vocab_size)) {
      return OutOfRange(absl::StrCat(field, "[", i, "]"),
                        absl::StrCat("below vocab_size ", vocab_size), absl::StrCat(ids[i]));
    }
    out.push_back(static_cast<int32_t>(ids[i]));
  }
  return out;
}

}  // namespace fixpoint
