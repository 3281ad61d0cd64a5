// Receipts: one digest over everything that decides an answer and over the answer itself. Free of
// gRPC, so that a client can compute what a server claims.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "base/digest.h"
#include "engine/sampling_params.h"
#include "server/constraint_spec.h"

namespace fixpoint {

// Everything that can change a token. What cannot is left out: speculation, prefix cache and its
// salt, priority, deadline, log-probabilities, how many choices the call has.
struct ReceiptRequest {
  std::string bundle_digest;  // hex
  uint32_t numerics_version = 0;
  std::vector<int32_t> prompt;  // begin-of-sequence token and chat template included
  SamplingParams sampling;      // the seed is the choice's own
  LogitAdjustment adjust;       // bias in any order
  int32_t max_tokens = 0;       // as resolved by the server
  int32_t min_tokens = 0;
  bool ignore_eos = false;
  std::vector<int32_t> stop_ids;          // in any order
  std::vector<std::string> stop_strings;  // in any order
  ConstraintSpec constraint;
};

// The numbers are part of receipts: never change them.
enum class ReceiptReason : uint8_t { kStop = 1, kLength = 2 };

struct ReceiptEnd {
  ReceiptReason reason = ReceiptReason::kStop;
  int32_t stop_token_id = -1;  // -1: none ended it
  std::string stop_string;     // empty: none ended it
};

// SHA-256 over these bytes. Integers are little-endian of the given width, signed ones in two's
// complement; a text or list begins with its length or count as u64.
//   text  "fixpoint-receipt-1"
//   text  bundle_digest
//   u32   numerics_version
//   list  prompt, i32 each
//   u32   inverse_temperature_q16     i32 top_k    u32 top_p_q16    u32 min_p_q16    u64 seed
//   u32   repetition_q16              i32 presence_q16    i32 frequency_q16
//   list  bias, rising by id: i32 id, i32 bias_q16
//   i32   max_tokens    i32 min_tokens    u8 ignore_eos
//   list  stop_ids, rising, each once: i32
//   list  stop_strings, rising by bytes, each once: text
//   u8    constraint kind    text constraint
//   list  output ids, i32 each: those given out, resumed ones included, without an ending id
//   u8    reason    i32 stop_token_id    text stop_string
// Not thread-safe.
class ReceiptHasher {
 public:
  explicit ReceiptHasher(const ReceiptRequest& request);
  // 64 hexadecimal digits. Call it once.
  std::string Finish(absl::Span<const int32_t> output_ids, const ReceiptEnd& end);

 private:
  void Bytes(const void* data, size_t num_bytes) { hash_.Update(data, num_bytes); }
  void Unsigned(uint64_t value, int num_bytes);
  void Signed(int32_t value) { Unsigned(static_cast<uint32_t>(value), 4); }
  void Text(absl::string_view text);
  void Ids(absl::Span<const int32_t> ids);

  Sha256 hash_;
};

}  // namespace fixpoint
