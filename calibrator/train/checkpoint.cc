#include "calibrator/train/checkpoint.h"

#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/digest.h"
#include "base/file.h"
#include "base/status_macros.h"

namespace fixpoint {
namespace {

constexpr char kMagic[] = "FPTRAIN1";
constexpr size_t kMagicBytes = sizeof(kMagic) - 1;
constexpr size_t kFingerprintDigits = 64;
constexpr size_t kDigestDigits = 64;
constexpr int64_t kMaxPoints = 10'000'000;
constexpr int64_t kMaxSteps = std::numeric_limits<int32_t>::max();

class Writer {
 public:
  template <typename T>
  void Value(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    text_.append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  template <typename T>
  void Values(const std::vector<T>& values) {
    text_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  }
  void Text(absl::string_view text) { absl::StrAppend(&text_, text); }
  std::string& text() { return text_; }

 private:
  std::string text_;
};

// Reads behind each other; the size was checked before.
class Reader {
 public:
  explicit Reader(absl::string_view text) : text_(text) {}
  template <typename T>
  void Value(T* value) {
    CHECK_LE(sizeof(T), text_.size());
    std::memcpy(value, text_.data(), sizeof(T));
    text_.remove_prefix(sizeof(T));
  }
  template <typename T>
  void Values(int64_t count, std::vector<T>* values) {
    values->resize(count);
    CHECK_LE(values->size() * sizeof(T), text_.size());
    std::memcpy(values->data(), text_.data(), values->size() * sizeof(T));
    text_.remove_prefix(values->size() * sizeof(T));
  }

 private:
  absl::string_view text_;
};

std::string Digest(absl::string_view text) {
  Sha256 digest;
  digest.Update(text.data(), text.size());
  return digest.FinishHex();
}

struct Counters {
  int64_t step = 0, best_step = 0, adam_steps = 0, parameters = 0, points = 0;
  double best_held_out = 0, first_held_out = 0;
  int64_t looks_since_best = 0;
};

constexpr size_t kHeaderBytes = kMagicBytes + kFingerprintDigits + sizeof(Counters);

uint64_t FileBytes(int64_t parameters, int64_t points) {
  return kHeaderBytes + 5 * static_cast<uint64_t>(parameters) * sizeof(float) +
         static_cast<uint64_t>(points) * sizeof(TrainPoint) + kDigestDigits;
}

}  // namespace

absl::Status WriteCheckpoint(const std::string& path, const std::string& fingerprint,
                             const TrainState& state) {
  CHECK_EQ(fingerprint.size(), kFingerprintDigits);
  const size_t n = state.parameters.size();
  CHECK(state.adam.first.size() == n && state.adam.second.size() == n &&
        state.average.size() == n && state.best_parameters.size() == n);
  Writer writer;
  writer.Text(kMagic);
  writer.Text(fingerprint);
  writer.Value(Counters{.step = state.step,
                        .best_step = state.best_step,
                        .adam_steps = state.adam.steps,
                        .parameters = static_cast<int64_t>(n),
                        .points = static_cast<int64_t>(state.points.size()),
                        .best_held_out = state.best_held_out,
                        .first_held_out = state.first_held_out,
                        .looks_since_best = state.looks_since_best});
  writer.Values(state.parameters);
  writer.Values(state.average);
  writer.Values(state.adam.first);
  writer.Values(state.adam.second);
  writer.Values(state.best_parameters);
  writer.Values(state.points);
  writer.Text(Digest(writer.text()));
  return WriteFileAtomically(path, writer.text());
}

absl::StatusOr<TrainState> ReadCheckpoint(const std::string& path, const std::string& fingerprint,
                                          int64_t parameters) {
  ASSIGN_OR_RETURN(const RandomAccessFile file, RandomAccessFile::Open(path));
  ASSIGN_OR_RETURN(const std::string text, file.ReadAll(FileBytes(parameters, kMaxPoints)));
  const auto damaged = [&](absl::string_view why) {
    return absl::DataLossError(absl::StrCat(path, ": damaged checkpoint: ", why));
  };
  if (text.size() < kHeaderBytes + kDigestDigits || !absl::StartsWith(text, kMagic))
    return damaged("not the start of one");
  const absl::string_view body = absl::string_view(text).substr(0, text.size() - kDigestDigits);
  if (Digest(body) != absl::string_view(text).substr(body.size()))
    return damaged("its digest does not match");
  if (body.substr(kMagicBytes, kFingerprintDigits) != fingerprint) {
    return absl::FailedPreconditionError(absl::StrCat(
        path,
        ": checkpoint of another run (model, corpus, settings or seed differ); remove it or "
        "repeat that run's command"));
  }
  Reader reader(body.substr(kMagicBytes + kFingerprintDigits));
  Counters counters;
  reader.Value(&counters);
  if (counters.parameters != parameters || counters.points < 0 || counters.points > kMaxPoints ||
      text.size() != FileBytes(parameters, counters.points)) {
    return damaged("its sizes do not fit");
  }
  const auto is_count = [](int64_t n) { return n >= 0 && n <= kMaxSteps; };
  if (!is_count(counters.step) || !is_count(counters.best_step) || !is_count(counters.adam_steps) ||
      !is_count(counters.looks_since_best)) {
    return damaged("its counters make no sense");
  }
  TrainState state;
  state.step = counters.step;
  state.best_step = counters.best_step;
  state.adam.steps = counters.adam_steps;
  state.best_held_out = counters.best_held_out;
  state.first_held_out = counters.first_held_out;
  state.looks_since_best = static_cast<int32_t>(counters.looks_since_best);
  reader.Values(parameters, &state.parameters);
  reader.Values(parameters, &state.average);
  reader.Values(parameters, &state.adam.first);
  reader.Values(parameters, &state.adam.second);
  reader.Values(parameters, &state.best_parameters);
  reader.Values(counters.points, &state.points);
  return state;
}

}  // namespace fixpoint
