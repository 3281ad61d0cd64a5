#include "base/aligned_buffer.h"

#include <cstdint>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>

#include "gtest/gtest.h"

namespace fixpoint {
namespace {

TEST(AlignedBufferTest, EverySizeIsAlignedAndWritable) {
  for (size_t size : {1u, 63u, 64u, 65u, 4097u, 1u << 20}) {
    AlignedBuffer buffer(size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u) << size;
    EXPECT_EQ(buffer.size_bytes(), size);
    std::memset(buffer.data(), 0x5a, size);
    EXPECT_EQ(buffer.as<uint8_t>()[size - 1], 0x5a);
  }
}

TEST(AlignedBufferTest, MovesHandOverTheMemory) {
  AlignedBuffer a(100);
  std::byte* const data = a.data();
  AlignedBuffer b(std::move(a));
  EXPECT_EQ(b.data(), data);
  EXPECT_TRUE(a.empty());
  EXPECT_EQ(a.data(), nullptr);
  AlignedBuffer c;
  c = std::move(b);
  EXPECT_EQ(c.data(), data);
  EXPECT_EQ(c.size_bytes(), 100u);
  EXPECT_TRUE(b.empty());
  EXPECT_TRUE(AlignedBuffer(0).empty());
}

// Whether the mapping that holds `address` has the flag "hg": huge pages are advised.
bool HugePagesAdvised(const void* address) {
  std::ifstream smaps("/proc/self/smaps");
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    uintptr_t begin = 0, end = 0;
    char dash = 0;
    std::istringstream range(line);
    if (range >> std::hex >> begin >> dash >> end && dash == '-') {
      const auto at = reinterpret_cast<uintptr_t>(address);
      inside = begin <= at && at < end;
    }
    if (inside && line.starts_with("VmFlags:")) return line.find(" hg") != std::string::npos;
  }
  return false;
}

TEST(AlignedBufferTest, HugePagesAreAdvised) {
  AlignedBuffer(1).AdviseHugePages();  // no whole page
  AlignedBuffer().AdviseHugePages();
  constexpr size_t kBytes = 8 << 20;
  AlignedBuffer buffer(kBytes);
  buffer.AdviseHugePages();
  std::memset(buffer.data(), 0x5a, kBytes);
  EXPECT_EQ(buffer.as<uint8_t>()[kBytes - 1], 0x5a);
  if (!std::ifstream("/sys/kernel/mm/transparent_hugepage/enabled"))
    GTEST_SKIP() << "this kernel has no transparent huge pages";
  EXPECT_FALSE(HugePagesAdvised(AlignedBuffer(kBytes).data()));
  EXPECT_TRUE(HugePagesAdvised(buffer.data() + kBytes / 2));
}

}  // namespace
}  // namespace fixpoint
