// Structured log: one JSON object per line on stderr, {"time", "level", "event", ...}. Prompt text,
// answers and file contents never go in; request ids, counts, sizes and codes do.
#pragma once

#include "absl/strings/string_view.h"
#include "base/json_writer.h"

namespace fixpoint {

enum class LogLevel { kInfo, kWarning, kError };

// One line, built by one thread: LogLine(LogLevel::kInfo, "ready").Add("seconds", 0.4).Write();
class LogLine {
 public:
  LogLine(LogLevel level, absl::string_view event);

  template <typename T>
  LogLine& Add(absl::string_view key, const T& value) {
    json_.Field(key, value);
    return *this;
  }

  // One write(2) in the usual case, so that lines of several threads and of a child process do not
  // mix. Call it once.
  void Write();

 private:
  JsonWriter json_;
};

}  // namespace fixpoint
