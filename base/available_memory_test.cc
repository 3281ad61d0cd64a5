#include "base/available_memory.h"

#include <filesystem>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

constexpr int64_t kMiB = 1 << 20;

class AvailableMemoryTest : public testing::Test {
 protected:
  AvailableMemoryTest() : root_(testing::TempDir() + "/available_memory_test") {
    std::filesystem::remove_all(root_);
    Write("proc/meminfo", "MemTotal:       2097152 kB\nMemAvailable:   1048576 kB\n");
  }
  ~AvailableMemoryTest() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ / path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  void Group(const std::string& path, const std::string& most, int64_t used, int64_t droppable) {
    const std::string folder = "sys/fs/cgroup/" + path;
    Write(folder + "/memory.max", most + "\n");
    Write(folder + "/memory.current", std::to_string(used) + "\n");
    Write(folder + "/memory.stat",
          "anon 1\nfile 2\ninactive_file " + std::to_string(droppable) + "\n");
  }
  std::filesystem::path root_;
};

TEST_F(AvailableMemoryTest, WithoutACgroupItIsTheMachines) {
  EXPECT_EQ(*AvailableMemoryBytes(root_), 1024 * kMiB);
  Write("proc/self/cgroup", "0::/\n");
  EXPECT_EQ(*AvailableMemoryBytes(root_), 1024 * kMiB);
}

TEST_F(AvailableMemoryTest, TheSmallestCgroupAboveCounts) {
  Write("proc/self/cgroup", "0::/pod/server\n");
  Group("pod/server", "max", 5, 0);
  EXPECT_EQ(*AvailableMemoryBytes(root_), 1024 * kMiB);
  Group("pod", std::to_string(600 * kMiB), 200 * kMiB, 50 * kMiB);
  EXPECT_EQ(*AvailableMemoryBytes(root_), 450 * kMiB);
  Group("pod/server", std::to_string(300 * kMiB), 100 * kMiB, 0);
  EXPECT_EQ(*AvailableMemoryBytes(root_), 200 * kMiB);
  Group("pod/server", std::to_string(300 * kMiB), 301 * kMiB, 0);
  EXPECT_EQ(*AvailableMemoryBytes(root_), 0);
}

TEST_F(AvailableMemoryTest, ContainersSeeTheirCgroupAsTheRoot) {
  Write("proc/self/cgroup", "0::/\n");
  Group("", std::to_string(64 * kMiB), 32 * kMiB, 0);
  EXPECT_EQ(*AvailableMemoryBytes(root_), 32 * kMiB);
}

TEST_F(AvailableMemoryTest, UnreadableFilesAreNamed) {
  Write("proc/self/cgroup", "0::/\n");
  Group("", "many", 1, 1);
  EXPECT_THAT(AvailableMemoryBytes(root_).status().message(), testing::HasSubstr("memory.max"));
  Write("proc/meminfo", "MemTotal: 5 kB\n");
  EXPECT_THAT(AvailableMemoryBytes(root_).status().message(), testing::HasSubstr("MemAvailable"));
}

TEST_F(AvailableMemoryTest, ThisMachineHasSome) {
  const absl::StatusOr<int64_t> bytes = AvailableMemoryBytes();
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_GT(*bytes, kMiB);
}

}  // namespace
}  // namespace fixpoint
