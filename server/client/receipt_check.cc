#include "server/client/receipt_check.h"

#include "base/status_macros.h"
#include "server/parse_sampling.h"
#include "server/receipt.h"

namespace fixpoint::client {
namespace {

ConstraintSpec SpecOf(const v1::Constraint& constraint) {
  switch (constraint.kind_case()) {
    case v1::Constraint::kJsonSchema:
      return {ConstraintKind::kJsonSchema, constraint.json_schema()};
    case v1::Constraint::kRegex:
      return {ConstraintKind::kRegex, constraint.regex()};
    case v1::Constraint::kJsonObject:
      return {ConstraintKind::kJsonObject, ""};
    case v1::Constraint::KIND_NOT_SET:
      break;
  }
  return {};
}

ReceiptEnd EndOf(const v1::Finished& finished) {
  ReceiptEnd end;
  end.reason =
      finished.reason() == v1::FINISH_REASON_LENGTH ? ReceiptReason::kLength : ReceiptReason::kStop;
  if (finished.stopped_by_case() == v1::Finished::kStopTokenId) {
    end.stop_token_id = static_cast<int32_t>(finished.stop_token_id());
  }
  if (finished.stopped_by_case() == v1::Finished::kStopString) {
    end.stop_string = finished.stop_string();
  }
  return end;
}

}  // namespace

absl::StatusOr<std::string> ComputeReceipt(const v1::GetModelResponse& model,
                                           const v1::GenerateRequest& request,
                                           const std::vector<uint32_t>& prompt_ids,
                                           const std::vector<uint32_t>& output_ids,
                                           const v1::Finished& finished) {
  const v1::Stopping& stopping = request.stopping();
  ReceiptRequest receipt;
  receipt.bundle_digest = model.bundle_digest();
  receipt.numerics_version = model.numerics_version();
  receipt.prompt.assign(prompt_ids.begin(), prompt_ids.end());
  RETURN_IF_ERROR(ParseSampling(request.sampling(), static_cast<int32_t>(model.vocab_size()),
                                &receipt.sampling, &receipt.adjust));
  receipt.max_tokens = static_cast<int32_t>(finished.max_tokens());
  receipt.min_tokens = static_cast<int32_t>(stopping.min_tokens());
  receipt.ignore_eos = stopping.ignore_eos();
  receipt.stop_ids.assign(stopping.stop_ids().begin(), stopping.stop_ids().end());
  receipt.stop_strings.assign(stopping.stop_strings().begin(), stopping.stop_strings().end());
  receipt.constraint = SpecOf(request.constraint());
  const std::vector<int32_t> output(output_ids.begin(), output_ids.end());
  return ReceiptHasher(receipt).Finish(output, EndOf(finished));
}

}  // namespace fixpoint::client
