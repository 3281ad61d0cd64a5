// Running another program to its end.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/stop_signal.h"

namespace fixpoint {

// Runs `arguments` (the first is the program's path) and waits. Its stdout goes to our stderr, so
// that our own stdout stays empty. When `stop` fires the child gets SIGTERM, and SIGKILL five
// seconds later. It also gets SIGTERM when the calling thread dies, so no child is left behind by a
// kill -9 of the server. OK: exit status 0. CANCELLED: stopped by `stop`. Otherwise INTERNAL naming
// the program and how it ended.
absl::Status RunChild(const std::vector<std::string>& arguments, const StopSignal& stop);

}  // namespace fixpoint
