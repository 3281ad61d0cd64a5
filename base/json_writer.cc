#include "base/json_writer.h"

#include <charconv>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace fixpoint {
namespace {

// Length of the well-formed UTF-8 sequence at text[i], 0 if there is none (RFC 3629: no surrogates,
// no overlong forms).
size_t Utf8SequenceLength(absl::string_view text, size_t i) {
  const auto byte = [&](size_t k) {
    return i + k < text.size() ? static_cast<uint8_t>(text[i + k]) : uint8_t{0};
  };
  const auto continues = [&](size_t k) { return (byte(k) & 0xC0) == 0x80; };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return continues(1) ? 2 : 0;
  if (lead >= 0xE0 && lead <= 0xEF) {
    if (lead == 0xE0 && byte(1) < 0xA0) return 0;
    if (lead == 0xED && byte(1) > 0x9F) return 0;
    return continues(1) && continues(2) ? 3 : 0;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    if (lead == 0xF0 && byte(1) < 0x90) return 0;
    if (lead == 0xF4 && byte(1) > 0x8F) return 0;
    return continues(1) && continues(2) && continues(3) ? 4 : 0;
  }
  return 0;
}

void AppendEscaped(char c, std::string* out) {
  static constexpr char kDigits[] = "0123456789abcdef";
  switch (c) {
    case '"':
      out->append("\\\"");
      return;
    case '\\':
      out->append("\\\\");
      return;
    case '\b':
      out->append("\\b");
      return;
    case '\f':
      out->append("\\f");
      return;
    case '\n':
      out->append("\\n");
      return;
    case '\r':
      out->append("\\r");
      return;
    case '\t':
      out->append("\\t");
      return;
    default:
      if (static_cast<uint8_t>(c) >= 0x20) {
        out->push_back(c);
      } else {
        out->append("\\u00");
        out->push_back(kDigits[c >> 4]);
        out->push_back(kDigits[c & 15]);
      }
  }
}

void AppendQuoted(absl::string_view text, std::string* out) {
  out->push_back('"');
  for (size_t i = 0; i < text.size();) {
    const size_t length = Utf8SequenceLength(text, i);
    if (length == 0) {
      out->append("\xEF\xBF\xBD");
      ++i;
    } else if (length == 1) {
      AppendEscaped(text[i++], out);
    } else {
      out->append(text.data() + i, length);
      i += length;
    }
  }
  out->push_back('"');
}

}  // namespace

void JsonWriter::BeforeValue() {
  CHECK(!done_) << "JSON: a second outermost value";
  if (open_.empty()) {
    done_ = true;  // a container clears this again until it is closed
  } else if (open_.back() == '{') {
    CHECK(after_key_) << "JSON: a value without a key";
    after_key_ = false;
  } else {
    if (!first_) text_.push_back(',');
    first_ = false;
  }
}

void JsonWriter::Open(char bracket) {
  BeforeValue();
  done_ = false;
  open_.push_back(bracket);
  text_.push_back(bracket);
  first_ = true;
}

void JsonWriter::Close(char opened, char bracket) {
  CHECK(!open_.empty() && open_.back() == opened && !after_key_) << "JSON: stray " << bracket;
  open_.pop_back();
  text_.push_back(bracket);
  first_ = false;
  done_ = open_.empty();
}

void JsonWriter::Key(absl::string_view key) {
  CHECK(!open_.empty() && open_.back() == '{' && !after_key_) << "JSON: stray key " << key;
  if (!first_) text_.push_back(',');
  first_ = false;
  AppendQuoted(key, &text_);
  text_.push_back(':');
  after_key_ = true;
}

void JsonWriter::String(absl::string_view value) {
  BeforeValue();
  AppendQuoted(value, &text_);
}

void JsonWriter::Int(int64_t value) {
  BeforeValue();
  absl::StrAppend(&text_, value);
}

void JsonWriter::Uint(uint64_t value) {
  BeforeValue();
  absl::StrAppend(&text_, value);
}

void JsonWriter::Bool(bool value) { Raw(value ? "true" : "false"); }

void JsonWriter::Null() { Raw("null"); }

void JsonWriter::Double(double value) {
  if (!std::isfinite(value)) return Null();
  char digits[32];
  const auto result = std::to_chars(digits, digits + sizeof(digits), value);
  CHECK(result.ec == std::errc());
  Raw(absl::string_view(digits, static_cast<size_t>(result.ptr - digits)));
}

void JsonWriter::Raw(absl::string_view json) {
  BeforeValue();
  text_.append(json.data(), json.size());
}

std::string JsonWriter::Take() {
  CHECK(done_) << "JSON: not complete: " << open_.size() << " levels are open";
  done_ = false;
  first_ = true;
  return std::exchange(text_, {});
}

std::string JsonQuote(absl::string_view text) {
  std::string quoted;
  AppendQuoted(text, &quoted);
  return quoted;
}

}  // namespace fixpoint
