#include "server/client/replay.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace fixpoint::client {
namespace {

std::string TokenAt(const std::vector<uint32_t>& ids, size_t index) {
  return index < ids.size() ? absl::StrCat(ids[index]) : "the end";
}

std::string EndText(const v1::Finished& finished) {
  std::string text = FinishReasonName(finished.reason());
  if (finished.stopped_by_case() == v1::Finished::kStopTokenId) {
    absl::StrAppend(&text, " by token ", finished.stop_token_id());
  }
  if (finished.stopped_by_case() == v1::Finished::kStopString) {
    absl::StrAppend(&text, " by the stop string '", finished.stop_string(), "'");
  }
  return text;
}

// Empty: no difference.
std::string ReceiptDifference(const AnswerRecord& record, const Replayed& replayed) {
  const std::string& recorded = record.finished.receipt();
  const std::string& now = replayed.finished.receipt();
  if (replayed.recorded_receipt.has_value() && *replayed.recorded_receipt != recorded) {
    return absl::StrCat("the recorded receipt ", recorded, " is not that of the recorded answer, ",
                        *replayed.recorded_receipt);
  }
  if (replayed.new_receipt.has_value() && *replayed.new_receipt != now) {
    return absl::StrCat("the server's receipt ", now, " is not that of its answer, ",
                        *replayed.new_receipt);
  }
  if (!recorded.empty() && !now.empty() && recorded != now) {
    return absl::StrCat("equal tokens, but the receipts differ: recorded ", recorded, ", now ",
                        now);
  }
  return "";
}

}  // namespace

v1::GenerateRequest ReplayRequest(const AnswerRecord& record) {
  v1::GenerateRequest request = record.request;
  request.clear_output();
  request.clear_priority();
  request.clear_speculation();
  request.clear_cache_salt();
  request.clear_use_cache();
  request.clear_resume_token_ids();
  return request;
}

Verdict Compare(const AnswerRecord& record, const Replayed& replayed) {
  const std::vector<uint32_t>& old_ids = record.output_ids;
  const std::vector<uint32_t>& new_ids = replayed.output_ids;
  const auto first = std::mismatch(old_ids.begin(), old_ids.end(), new_ids.begin(), new_ids.end());
  const size_t index = static_cast<size_t>(first.first - old_ids.begin());
  if (index < old_ids.size() || index < new_ids.size()) {
    return {false, absl::StrCat("differs at token ", index, ": recorded is ",
                                TokenAt(old_ids, index), ", now it is ", TokenAt(new_ids, index))};
  }
  const std::string old_end = EndText(record.finished);
  const std::string new_end = EndText(replayed.finished);
  if (old_end != new_end) {
    return {false, absl::StrCat("equal tokens, but the end differs: recorded is ", old_end,
                                ", now it is ", new_end)};
  }
  const std::string difference = ReceiptDifference(record, replayed);
  if (!difference.empty()) return {false, difference};
  return {true, absl::StrCat("equal, ", old_ids.size(), " tokens, ",
                             record.finished.receipt().empty()
                                 ? "no receipt recorded"
                                 : absl::StrCat("receipt ", record.finished.receipt()))};
}

}  // namespace fixpoint::client
