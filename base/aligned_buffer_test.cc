#include "base/aligned_buffer.h"

#include <cstdint>
#include <cstring>
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

}  // namespace
}  // namespace fixpoint
