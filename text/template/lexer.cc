#include "text/template/lexer.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

#include "base/status_macros.h"
#include "text/unicode.h"
#include "text/utf8.h"

namespace fixpoint {
namespace {

// Longest first, so that the first one that fits is right.
constexpr absl::string_view kOperators[] = {"//", "**", "==", "!=", "<=", ">=", "+", "-", "*",
                                            "/",  "%",  "~",  "(",  ")",  "[",  "]", "{", "}",
                                            "<",  ">",  "=",  ".",  ":",  "|",  ",", ";"};

bool IsSpaceOnly(absl::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = ReadCodePoint(text, i);
    if (!IsPythonSpace(c.value)) return false;
    i += c.length;
  }
  return true;
}

absl::string_view StripRight(absl::string_view text) {
  while (!text.empty()) {
    const size_t last = PreviousCodePoint(text, text.size());
    if (!IsPythonSpace(ReadCodePoint(text, last).value)) break;
    text = text.substr(0, last);
  }
  return text;
}

class Lexer {
 public:
  explicit Lexer(absl::string_view source) : source_(source) {}

  absl::StatusOr<std::vector<TemplateToken>> Run() {
    while (position_ < source_.size()) RETURN_IF_ERROR(LexOutsideTag());
    Emit(TokenKind::kEnd);
    return std::move(tokens_);
  }

 private:
  template <typename... Parts>
  absl::Status Error(const Parts&... parts) const {
    return absl::InvalidArgumentError(absl::StrCat("chat template, line ", line_, ": ", parts...));
  }
  void Emit(TokenKind kind, std::string text = "", int64_t number = 0) {
    tokens_.push_back({kind, line_, std::move(text), number});
  }
  void Advance(size_t count) {
    line_ += static_cast<int>(
        std::count(source_.begin() + position_, source_.begin() + position_ + count, '\n'));
    position_ += count;
  }
  absl::string_view Rest() const { return source_.substr(position_); }
  bool At(absl::string_view text) const { return Rest().substr(0, text.size()) == text; }

  // Data up to the next tag, then the tag.
  absl::Status LexOutsideTag() {
    size_t tag = position_;
    while (true) {
      tag = source_.find('{', tag);
      if (tag == absl::string_view::npos || tag + 1 >= source_.size()) {
        Emit(TokenKind::kData, std::string(Rest()));
        position_ = source_.size();
        return absl::OkStatus();
      }
      if (std::strchr("{%#", source_[tag + 1]) != nullptr && source_[tag + 1] != '\0') break;
      ++tag;
    }
    absl::string_view data = source_.substr(position_, tag - position_);
    const char kind = source_[tag + 1];
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    if (sign == '-') {
      data = StripRight(data);
    } else if (sign != '+' && kind != '{') {
      // lstrip_blocks: white space alone between the start of the line and the tag goes.
      const size_t line_begin = data.rfind('\n') + 1;  // npos + 1 = 0
      if ((line_begin > 0 || line_starting_) && IsSpaceOnly(data.substr(line_begin))) {
        data = data.substr(0, line_begin);
      }
    }
    if (!data.empty()) Emit(TokenKind::kData, std::string(data));
    Advance(tag - position_ + 2 + (sign == '-' || sign == '+' ? 1 : 0));
    line_starting_ = false;
    if (kind == '#') return SkipComment();
    return LexTag(kind == '%');
  }

  absl::Status SkipComment() {
    const size_t end = source_.find("#}", position_);
    if (end == absl::string_view::npos) return Error("comment without #}");
    const char sign = end > position_ ? source_[end - 1] : '\0';
    Advance(end + 2 - position_);
    FinishTag(sign, /*trims_newline=*/true);
    return absl::OkStatus();
  }

  // White space behind a tag: all of it behind '-', else one newline behind blocks and comments.
  void FinishTag(char sign, bool trims_newline) {
    const size_t begin = position_;
    if (sign == '-') {
      while (position_ < source_.size()) {
        const CodePoint c = ReadCodePoint(source_, position_);
        if (!IsPythonSpace(c.value)) break;
        Advance(c.length);
      }
    } else if (sign != '+' && trims_newline && At("\n")) {
      Advance(1);
    }
    line_starting_ = position_ > begin && source_[position_ - 1] == '\n';
  }

  absl::Status LexTag(bool block) {
    Emit(block ? TokenKind::kBlockBegin : TokenKind::kOutputBegin);
    const absl::string_view end = block ? "%}" : "}}";
    std::string open;  // brackets: "}}" inside of them closes two dicts
    while (position_ < source_.size()) {
      const char c = source_[position_];
      if (open.empty()) {
        const bool sign = c == '-' || (block && c == '+');
        if (Rest().substr(sign ? 1 : 0, 2) == end) {
          Emit(block ? TokenKind::kBlockEnd : TokenKind::kOutputEnd);
          Advance(sign ? 3 : 2);
          FinishTag(sign ? c : '\0', block);
          return absl::OkStatus();
        }
      }
      if (absl::ascii_isspace(c)) {
        Advance(1);
      } else if (absl::ascii_isalpha(c) || c == '_') {
        RETURN_IF_ERROR(LexName(block));
      } else if (absl::ascii_isdigit(c)) {
        RETURN_IF_ERROR(LexInteger());
      } else if (c == '\'' || c == '"') {
        RETURN_IF_ERROR(LexString(c));
      } else {
        RETURN_IF_ERROR(LexOperator(&open));
      }
    }
    return Error("tag without ", end);
  }

  absl::Status LexName(bool block) {
    size_t size = 0;
    while (size < Rest().size() && (absl::ascii_isalnum(Rest()[size]) || Rest()[size] == '_'))
      ++size;
    std::string name(Rest().substr(0, size));
    const bool opens_tag = tokens_.back().kind == TokenKind::kBlockBegin;
    if (block && opens_tag && name == "raw") return Error("tag 'raw' is not supported");
    Emit(TokenKind::kName, std::move(name));
    Advance(size);
    return absl::OkStatus();
  }

  absl::Status LexInteger() {
    size_t size = 0;
    while (size < Rest().size() && absl::ascii_isdigit(Rest()[size])) ++size;
    const absl::string_view digits = Rest().substr(0, size);
    const char next = size < Rest().size() ? Rest()[size] : '\0';
    const bool fraction =
        next == '.' && size + 1 < Rest().size() && absl::ascii_isdigit(Rest()[size + 1]);
    if (fraction || absl::ascii_isalpha(next) || next == '_') {
      return Error("number ", Rest().substr(0, size + 2), "...: only plain integers are supported");
    }
    int64_t number;
    if (!absl::SimpleAtoi(digits, &number)) return Error("integer ", digits, " is too large");
    Emit(TokenKind::kInteger, "", number);
    Advance(size);
    return absl::OkStatus();
  }

  absl::Status LexString(char quote) {
    size_t end = position_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size())
      return Error("string without closing ", absl::string_view(&quote, 1));
    std::string text;
    RETURN_IF_ERROR(Unescape(source_.substr(position_ + 1, end - position_ - 1), &text));
    Emit(TokenKind::kString, std::move(text));
    Advance(end + 1 - position_);
    return absl::OkStatus();
  }

  // Python's escapes. One that Python does not know stays as it is, backslash and all.
  absl::Status Unescape(absl::string_view raw, std::string* out) const {
    static constexpr absl::string_view kNames = "abfnrtv\\'\"";
    static constexpr absl::string_view kMeanings = "\a\b\f\n\r\t\v\\'\"";
    for (size_t i = 0; i < raw.size(); ++i) {
      if (raw[i] != '\\' || i + 1 == raw.size()) {
        out->push_back(raw[i]);
        continue;
      }
      const char c = raw[++i];
      if (const size_t known = kNames.find(c); known != absl::string_view::npos) {
        out->push_back(kMeanings[known]);
      } else if (c == '\n') {
        continue;  // a line that goes on
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        uint32_t code_point;
        if (i + digits >= raw.size()) return Error("escape \\", raw.substr(i, 1), " is cut short");
        if (!absl::SimpleHexAtoi(raw.substr(i + 1, digits), &code_point) || code_point > 0x10FFFF ||
            (code_point >= 0xD800 && code_point < 0xE000)) {
          return Error("escape \\", raw.substr(i, digits + 1), " is no character");
        }
        AppendUtf8(code_point, out);
        i += digits;
      } else if (absl::ascii_isdigit(c) || c == 'N') {
        return Error("escape \\", raw.substr(i, 1), " is not supported");
      } else {
        out->push_back('\\');
        out->push_back(c);
      }
    }
    return absl::OkStatus();
  }

  absl::Status LexOperator(std::string* open) {
    for (const absl::string_view op : kOperators) {
      if (!At(op)) continue;
      const char c = op[0];
      if (c == '(' || c == '[' || c == '{') open->push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
      if (c == ')' || c == ']' || c == '}') {
        if (open->empty() || open->back() != c) return Error("unexpected ", op);
        open->pop_back();
      }
      Emit(TokenKind::kOperator, std::string(op));
      Advance(op.size());
      return absl::OkStatus();
    }
    return Error("unexpected character ",
                 Rest().substr(0, ReadCodePoint(source_, position_).length));
  }

  absl::string_view source_;
  size_t position_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  // what was read last ended with a newline
  std::vector<TemplateToken> tokens_;
};

}  // namespace

absl::StatusOr<std::vector<TemplateToken>> LexTemplate(absl::string_view source) {
  if (source.size() > kMaxTemplateBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "chat template: ", source.size(), " bytes are over the limit of ", kMaxTemplateBytes));
  }
  if (!IsValidUtf8(source)) return absl::InvalidArgumentError("chat template is not valid UTF-8");
  // As Jinja does: one kind of line end, and a single one at the very end does not count.
  std::string text = absl::StrReplaceAll(source, {{"\r\n", "\n"}, {"\r", "\n"}});
  if (!text.empty() && text.back() == '\n') text.pop_back();
  return Lexer(text).Run();
}

}  // namespace fixpoint
