#include "text/detokenizer.h"

#include "text/utf8.h"

namespace fixpoint {

Detokenizer::Detokenizer(const Tokenizer* tokenizer, DetokenizerOptions options)
    : tokenizer_(tokenizer),
      skip_control_(options.skip_control),
      strip_space_(options.at_start && tokenizer->spec().add_space_prefix &&
                   tokenizer->spec().kind == TokenizerKind::kSentencePieceBpe) {}

std::string Detokenizer::Push(int32_t id) {
  if (skip_control_ && tokenizer_->IsControl(id)) return {};
  absl::string_view bytes = tokenizer_->TokenBytes(id);
  if (bytes.empty()) return {};
  if (strip_space_) {
    strip_space_ = false;
    if (bytes[0] == ' ') bytes.remove_prefix(1);
  }
  pending_.append(bytes.data(), bytes.size());

  std::string out;
  size_t done = 0;
  while (done < pending_.size()) {
    const absl::string_view rest = absl::string_view(pending_).substr(done);
    const Utf8Front front = ClassifyUtf8(rest);
    if (front.kind == Utf8Prefix::kIncomplete) break;
    if (front.kind == Utf8Prefix::kValid) {
      out.append(rest.data(), front.length);
    } else {
      AppendUtf8(kReplacementCharacter, &out);
    }
    done += front.length;
  }
  pending_.erase(0, done);
  return out;
}

std::string Detokenizer::Finish() {
  std::string out;
  if (!pending_.empty()) AppendUtf8(kReplacementCharacter, &out);
  pending_.clear();
  return out;
}

}  // namespace fixpoint
