#include "base/available_cpus.h"

#include "base/kernel_files_test_util.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

// The machine's own count, whatever it is, bounds all others: quotas are tested by the smallest.
class AvailableCpusTest : public KernelFilesTest {};

TEST_F(AvailableCpusTest, WithoutAQuotaItIsTheAffinityMask) {
  const int all = AvailableCpuCount(root());
  EXPECT_GE(all, 1);
  Write("proc/self/cgroup", "0::/pod\n");
  Write("sys/fs/cgroup/pod/cpu.max", "max 100000\n");
  EXPECT_EQ(AvailableCpuCount(root()), all);
  Write("sys/fs/cgroup/pod/cpu.max", "100000000 100000\n");
  EXPECT_EQ(AvailableCpuCount(root()), all);
}

TEST_F(AvailableCpusTest, QuotasCountInWholeCpus) {
  Write("proc/self/cgroup", "0::/pod/server\n");
  Write("sys/fs/cgroup/pod/server/cpu.max", "max 100000\n");
  Write("sys/fs/cgroup/pod/cpu.max", "190000 100000\n");
  EXPECT_EQ(AvailableCpuCount(root()), 1);
  Write("sys/fs/cgroup/pod/cpu.max", "20000 100000\n");
  EXPECT_EQ(AvailableCpuCount(root()), 1);
}

TEST_F(AvailableCpusTest, FirstVersionCgroupsOfAContainer) {
  // Docker's name outside, mounted as the root inside.
  Write("proc/self/cgroup", "5:cpu,cpuacct:/docker/4f2a\n4:memory:/docker/4f2a\n0::/\n");
  Write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000\n");
  Write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(AvailableCpuCount(root()), 1);
  const int all = AvailableCpuCount("/nonexistent");
  Write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  EXPECT_EQ(AvailableCpuCount(root()), all);
}

}  // namespace
}  // namespace fixpoint
