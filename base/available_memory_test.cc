#include "base/available_memory.h"

#include "base/kernel_files_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

constexpr int64_t kMiB = 1 << 20;

class AvailableMemoryTest : public KernelFilesTest {
 protected:
  AvailableMemoryTest() {
    Write("proc/meminfo", "MemTotal:       2097152 kB\nMemAvailable:   1048576 kB\n");
  }

  void Group(const std::string& path, const std::string& most, int64_t used, int64_t droppable) {
    const std::string folder = "sys/fs/cgroup/" + path;
    Write(folder + "/memory.max", most + "\n");
    Write(folder + "/memory.current", std::to_string(used) + "\n");
    Write(folder + "/memory.stat",
          "anon 1\nfile 2\ninactive_file " + std::to_string(droppable) + "\n");
  }
};

TEST_F(AvailableMemoryTest, WithoutACgroupItIsTheMachines) {
  EXPECT_EQ(*AvailableMemoryBytes(root()), 1024 * kMiB);
  Write("proc/self/cgroup", "0::/\n");
  EXPECT_EQ(*AvailableMemoryBytes(root()), 1024 * kMiB);
}

TEST_F(AvailableMemoryTest, TheSmallestCgroupAboveCounts) {
  Write("proc/self/cgroup", "0::/pod/server\n");
  Group("pod/server", "max", 5, 0);
  EXPECT_EQ(*AvailableMemoryBytes(root()), 1024 * kMiB);
  Group("pod", std::to_string(600 * kMiB), 200 * kMiB, 50 * kMiB);
  EXPECT_EQ(*AvailableMemoryBytes(root()), 450 * kMiB);
  Group("pod/server", std::to_string(300 * kMiB), 100 * kMiB, 0);
  EXPECT_EQ(*AvailableMemoryBytes(root()), 200 * kMiB);
  Group("pod/server", std::to_string(300 * kMiB), 301 * kMiB, 0);
  EXPECT_EQ(*AvailableMemoryBytes(root()), 0);
}

TEST_F(AvailableMemoryTest, ContainersSeeTheirCgroupAsTheRoot) {
  Write("proc/self/cgroup", "0::/\n");
  Group("", std::to_string(64 * kMiB), 32 * kMiB, 0);
  EXPECT_EQ(*AvailableMemoryBytes(root()), 32 * kMiB);
}

TEST_F(AvailableMemoryTest, FirstVersionCgroups) {
  Write("proc/self/cgroup", "4:memory:/docker/4f2a\n0::/\n");
  // The host's root: no limit is a number that no machine has.
  const std::string folder = "sys/fs/cgroup/memory/";
  Write(folder + "memory.limit_in_bytes", "9223372036854771712\n");
  Write(folder + "memory.usage_in_bytes", "4096\n");
  Write(folder + "memory.stat", "inactive_file 1\ntotal_inactive_file 0\n");
  EXPECT_EQ(*AvailableMemoryBytes(root()), 1024 * kMiB);
  Write(folder + "memory.limit_in_bytes", std::to_string(64 * kMiB));
  Write(folder + "memory.usage_in_bytes", std::to_string(32 * kMiB));
  EXPECT_EQ(*AvailableMemoryBytes(root()), 32 * kMiB);
  Write(folder + "docker/4f2a/memory.limit_in_bytes", std::to_string(16 * kMiB));
  Write(folder + "docker/4f2a/memory.usage_in_bytes", std::to_string(8 * kMiB));
  Write(folder + "docker/4f2a/memory.stat", "total_inactive_file 4096\n");
  EXPECT_EQ(*AvailableMemoryBytes(root()), 8 * kMiB + 4096);
}

TEST_F(AvailableMemoryTest, UnreadableFilesAreNamed) {
  Write("proc/self/cgroup", "0::/\n");
  Group("", "many", 1, 1);
  EXPECT_THAT(AvailableMemoryBytes(root()).status().message(), testing::HasSubstr("memory.max"));
  Write("proc/meminfo", "MemTotal: 5 kB\n");
  EXPECT_THAT(AvailableMemoryBytes(root()).status().message(), testing::HasSubstr("MemAvailable"));
}

TEST_F(AvailableMemoryTest, ThisMachineHasSome) {
  const absl::StatusOr<int64_t> bytes = AvailableMemoryBytes();
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_GT(*bytes, kMiB);
}

}  // namespace
}  // namespace fixpoint
