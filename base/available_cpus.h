// How many CPUs this process can keep busy.
#pragma once

#include <string>

namespace fixpoint {

// At least 1: the CPUs of the affinity mask, at most the whole CPUs of each cgroup's quota (1.5 are
// one: a second thread would be stopped in the middle of a step). Quotas that cannot be read count
// as none. `root` is the place of proc and sys, for tests.
int AvailableCpuCount(const std::string& root = "/");

}  // namespace fixpoint
