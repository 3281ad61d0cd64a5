#include "server/receipt.h"

#include <algorithm>

namespace fixpoint {
namespace {

template <typename T>
std::vector<T> SortedOnce(std::vector<T> values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values;
}

}  // namespace

ReceiptHasher::ReceiptHasher(const ReceiptRequest& request) {
  Text("fixpoint-receipt-1");
  Text(request.bundle_digest);
  Unsigned(request.numerics_version, 4);
  Ids(request.prompt);
  const SamplingParams& sampling = request.sampling;
  Unsigned(sampling.inverse_temperature_q16, 4);
  Signed(sampling.top_k);
  Unsigned(sampling.top_p_q16, 4);
  Unsigned(sampling.min_p_q16, 4);
  Unsigned(sampling.seed, 8);
  Unsigned(request.adjust.repetition_q16, 4);
  Signed(request.adjust.presence_q16);
  Signed(request.adjust.frequency_q16);
  auto bias = request.adjust.bias_q16;
  std::sort(bias.begin(), bias.end());
  Unsigned(bias.size(), 8);
  for (const auto& [id, value] : bias) {
    Signed(id);
    Signed(value);
  }
  Signed(request.max_tokens);
  Signed(request.min_tokens);
  Unsigned(request.ignore_eos ? 1 : 0, 1);
  Ids(SortedOnce(request.stop_ids));
  const std::vector<std::string> stop_strings = SortedOnce(request.stop_strings);
  Unsigned(stop_strings.size(), 8);
  for (const std::string& text : stop_strings) Text(text);
  Unsigned(static_cast<uint8_t>(request.constraint.kind), 1);
  Text(request.constraint.text);
}

std::string ReceiptHasher::Finish(absl::Span<const int32_t> output_ids, const ReceiptEnd& end) {
  Ids(output_ids);
  Unsigned(static_cast<uint8_t>(end.reason), 1);
  Signed(end.stop_token_id);
  Text(end.stop_string);
  return hash_.FinishHex();
}

void ReceiptHasher::Unsigned(uint64_t value, int num_bytes) {
  uint8_t bytes[8];
  for (int i = 0; i < num_bytes; ++i) bytes[i] = static_cast<uint8_t>(value >> (8 * i));
  Bytes(bytes, static_cast<size_t>(num_bytes));
}

void ReceiptHasher::Text(absl::string_view text) {
  Unsigned(text.size(), 8);
  Bytes(text.data(), text.size());
}

void ReceiptHasher::Ids(absl::Span<const int32_t> ids) {
  Unsigned(ids.size(), 8);
  for (const int32_t id : ids) Signed(id);
}

}  // namespace fixpoint
