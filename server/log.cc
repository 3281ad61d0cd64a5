#include "server/log.h"

#include <unistd.h>

#include <cerrno>
#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace fixpoint {
namespace {

absl::string_view LevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "error";
}

}  // namespace

LogLine::LogLine(LogLevel level, absl::string_view event) {
  json_.BeginObject();
  Add("time", absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone()));
  Add("level", LevelName(level));
  Add("event", event);
}

void LogLine::Write() {
  json_.EndObject();
  const std::string text = json_.Take() + "\n";
  absl::string_view left = text;
  while (!left.empty()) {
    const ssize_t written = ::write(STDERR_FILENO, left.data(), left.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return;  // nobody reads our log: serving goes on
    left.remove_prefix(static_cast<size_t>(written));
  }
}

}  // namespace fixpoint
