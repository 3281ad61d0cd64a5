#include "text/pre_tokenizer.h"

#include "text/unicode.h"
#include "text/utf8.h"

namespace fixpoint {
namespace {

// A code point with its class, or the end of the text (length 0, class 0).
struct Char {
  uint32_t value = 0;
  uint32_t length = 0;
  uint8_t bits = 0;

  bool end() const { return length == 0; }
  bool letter() const { return (bits & kLetterClass) != 0; }
  bool number() const { return (bits & kNumberClass) != 0; }
  bool space() const { return (bits & kSpaceClass) != 0; }
  bool other() const { return !end() && (bits & (kLetterClass | kNumberClass | kSpaceClass)) == 0; }
  bool newline() const { return value == '\n' || value == '\r'; }
};

// Returns the byte behind the piece that starts at a given byte. Alternatives are tried in the
// order of the regex.
class Scanner {
 public:
  Scanner(absl::string_view text, int64_t* work) : text_(text), work_(work) {}

  // 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  size_t Gpt2(size_t start) {
    if (const size_t end = Contraction(start, /*ignore_case=*/false)) return end;
    const Char first = At(start);
    const size_t body = start + (first.value == ' ' ? first.length : 0);
    const Char c = body == start ? first : At(body);
    if (c.letter()) return SkipWhile(body, [](Char x) { return x.letter(); });
    if (c.number()) return SkipWhile(body, [](Char x) { return x.number(); });
    if (c.other()) return SkipWhile(body, [](Char x) { return x.other(); });
    return Spaces(start);
  }

  // (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,D}|
  // ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ D is max_digits: 3 for Llama-3, 1 for Qwen2.
  size_t Llama3(size_t start, int max_digits) {
    if (const size_t end = Contraction(start, /*ignore_case=*/true)) return end;
    const Char first = At(start);
    if (first.letter()) return SkipWhile(start, [](Char x) { return x.letter(); });
    if (first.number()) {
      int left = max_digits;
      return SkipWhile(start, [&left](Char x) { return x.number() && left-- > 0; });
    }
    const Char second = At(start + first.length);
    if (!first.newline() && second.letter()) {
      return SkipWhile(start + first.length, [](Char x) { return x.letter(); });
    }
    if (first.other() || (first.value == ' ' && second.other())) {
      const size_t end = SkipWhile(start + first.length, [](Char x) { return x.other(); });
      return SkipWhile(end, [](Char x) { return x.newline(); });
    }
    return SpacesWithNewlines(start);
  }

  bool NumberAt(size_t position) { return At(position).number(); }
  size_t SkipOne(size_t position) { return position + At(position).length; }

 private:
  Char At(size_t position) {
    ++*work_;
    if (position >= text_.size()) return {};
    const CodePoint c = ReadCodePoint(text_, position);
    return {c.value, c.length, CharacterClass(c.value)};
  }

  template <typename Predicate>
  size_t SkipWhile(size_t position, Predicate wanted) {
    for (Char c = At(position); !c.end() && wanted(c); c = At(position)) position += c.length;
    return position;
  }

  // End of an English contraction at `start`, or 0. U+017F folds to s, the only such letter outside
  // ASCII here.
  size_t Contraction(size_t start, bool ignore_case) {
    if (text_[start] != '\'') return 0;
    auto letter = [&](size_t position) -> uint32_t {
      if (position >= text_.size()) return 0;
      const uint32_t c = ReadCodePoint(text_, position).value;
      if (!ignore_case) return c;
      if (c == 0x17F) return 's';
      return c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c;
    };
    const uint32_t first = letter(start + 1);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return SkipOne(start + 1);
    if (first != 'r' && first != 'v' && first != 'l') return 0;
    return letter(start + 2) == (first == 'l' ? 'l' : 'e') ? start + 3 : 0;
  }

  // \s+(?!\S)|\s+ : a run of white space in front of other text leaves its last character to the
  // next piece.
  size_t Spaces(size_t start) {
    const size_t end = SkipWhile(start, [](Char x) { return x.space(); });
    if (end == text_.size()) return end;
    const size_t last = PreviousCodePoint(text_, end);
    return last > start ? last : end;
  }

  // \s*[\r\n]+ in front of that: a run that holds a line break ends behind its last one.
  size_t SpacesWithNewlines(size_t start) {
    size_t behind_newline = 0;
    size_t position = start;
    for (Char c = At(position); c.space(); c = At(position)) {
      position += c.length;
      if (c.newline()) behind_newline = position;
    }
    return behind_newline != 0 ? behind_newline : Spaces(start);
  }

  absl::string_view text_;
  int64_t* work_;
};

template <typename Next>
void Split(absl::string_view text, absl::FunctionRef<void(absl::string_view)> emit, int64_t* work,
           Next next) {
  Scanner scanner(text, work);
  for (size_t start = 0; start < text.size();) {
    const size_t end = next(&scanner, start);
    emit(text.substr(start, end - start));
    start = end;
  }
}

void SplitGpt2(absl::string_view text, absl::FunctionRef<void(absl::string_view)> emit,
               int64_t* work) {
  Split(text, emit, work, [](Scanner* scanner, size_t start) { return scanner->Gpt2(start); });
}

// Every number character is a piece of its own; GPT-2's rule then sees the text between two of them
// as if it stood alone, so white space in front of a number is not held back for it.
void SplitSmolLm(absl::string_view text, absl::FunctionRef<void(absl::string_view)> emit,
                 int64_t* work) {
  Scanner scanner(text, work);
  size_t begin = 0;
  for (size_t i = 0; i < text.size();) {
    const size_t next = scanner.SkipOne(i);
    if (scanner.NumberAt(i)) {
      if (begin < i) SplitGpt2(text.substr(begin, i - begin), emit, work);
      emit(text.substr(i, next - i));
      begin = next;
    }
    i = next;
  }
  if (begin < text.size()) SplitGpt2(text.substr(begin), emit, work);
}

}  // namespace

void SplitText(PreTokenizer rule, absl::string_view text,
               absl::FunctionRef<void(absl::string_view)> emit, int64_t* work) {
  if (text.empty()) return;
  switch (rule) {
    case PreTokenizer::kNone:
      return emit(text);
    case PreTokenizer::kGpt2:
      return SplitGpt2(text, emit, work);
    case PreTokenizer::kSmolLm:
      return SplitSmolLm(text, emit, work);
    case PreTokenizer::kLlama3:
      return Split(text, emit, work, [](Scanner* s, size_t start) { return s->Llama3(start, 3); });
    case PreTokenizer::kQwen2:
      return Split(text, emit, work, [](Scanner* s, size_t start) { return s->Llama3(start, 1); });
  }
}

}  // namespace fixpoint
