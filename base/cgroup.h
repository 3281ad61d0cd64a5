// Where the kernel keeps what a container may use.
#pragma once

#include <string>
#include <vector>

namespace fixpoint {

struct CgroupFolder {
  std::string path;
  bool unified = false;  // cgroup v2; else v1, whose files have other names
};

// The folders of `controller` ("memory", "cpu") that bind this process: its own cgroup first, then
// each one above, up to the highest that is mounted here. Some may not exist: a container without a
// cgroup namespace sees its own cgroup mounted as the root, but its outside name in /proc. Empty
// without cgroups. `root` is the place of proc and sys, for tests.
std::vector<CgroupFolder> CgroupFolders(const std::string& controller,
                                        const std::string& root = "/");

}  // namespace fixpoint
