// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3" (SC 2011): random words as a pure function of a key and a counter, so that a stream can
// be continued from its tokens alone.
#pragma once

#include <cstdint>

namespace fixpoint {

struct PhiloxWords {
  uint32_t word[4];
};

constexpr PhiloxWords Philox4x32(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter.word[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter.word[2];
    counter = {{static_cast<uint32_t>(b >> 32) ^ counter.word[1] ^ key0, static_cast<uint32_t>(b),
                static_cast<uint32_t>(a >> 32) ^ counter.word[3] ^ key1, static_cast<uint32_t>(a)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// The 64 random bits of a token: key = seed (low word first), counter = position (low word first)
// and two zero words.
constexpr uint64_t TokenRandomBits(uint64_t seed, uint64_t position) {
  const PhiloxWords out =
      Philox4x32({{static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0}},
                 static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  return out.word[0] | static_cast<uint64_t>(out.word[1]) << 32;
}

}  // namespace fixpoint
