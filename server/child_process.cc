#include "server/child_process.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace fixpoint {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(50);
constexpr absl::Duration kPatience = absl::Seconds(5);
constexpr int kExecFailed = 127;

// Between fork and exec only async-signal-safe calls are allowed.
[[noreturn]] void Exec(char* const* arguments, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(kExecFailed);  // it died before the line above
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  signal(SIGPIPE, SIG_DFL);
  dup2(STDERR_FILENO, STDOUT_FILENO);
  execv(arguments[0], arguments);
  _exit(kExecFailed);
}

absl::Status StatusOfEnd(const std::string& program, int wait_status) {
  if (WIFEXITED(wait_status)) {
    const int code = WEXITSTATUS(wait_status);
    if (code == 0) return absl::OkStatus();
    return absl::InternalError(absl::StrCat(
        program, code == kExecFailed ? " could not be started"
                                     : absl::StrCat(" ended with exit status ", code)));
  }
  return absl::InternalError(absl::StrCat(program, " was ended by signal ", WTERMSIG(wait_status)));
}

}  // namespace

absl::Status RunChild(const std::vector<std::string>& arguments, const StopSignal& stop) {
  std::vector<char*> pointers;
  for (const std::string& argument : arguments)
    pointers.push_back(const_cast<char*>(argument.c_str()));
  pointers.push_back(nullptr);
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child < 0)
    return absl::InternalError(
        absl::StrCat("cannot start ", arguments[0], ": ", std::strerror(errno)));
  if (child == 0) Exec(pointers.data(), parent);

  absl::Time kill_at = absl::InfiniteFuture();
  bool stopped = false;
  while (true) {
    int wait_status = 0;
    const pid_t ended = waitpid(child, &wait_status, WNOHANG);
    if (ended == child) {
      return stopped ? absl::CancelledError(absl::StrCat(arguments[0], " was stopped"))
                     : StatusOfEnd(arguments[0], wait_status);
    }
    if (ended < 0 && errno != EINTR) {
      return absl::InternalError(
          absl::StrCat("cannot wait for ", arguments[0], ": ", std::strerror(errno)));
    }
    if (!stopped && stop.Wait(kPoll)) {
      stopped = true;
      kill(child, SIGTERM);
      kill_at = absl::Now() + kPatience;
    }
    if (!stopped) continue;
    absl::SleepFor(kPoll);
    if (absl::Now() >= kill_at) kill(child, SIGKILL);
  }
}

}  // namespace fixpoint
