#include "server/call_plan.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "server/field_checks.h"

namespace fixpoint {
namespace {

ReceiptHasher MakeReceipt(const ParsedRequest& parsed, const Request& request,
                          const ModelIdentity& identity) {
  return ReceiptHasher({.bundle_digest = identity.bundle_digest,
                        .numerics_version = identity.numerics_version,
                        .prompt = request.prompt,
                        .sampling = request.sampling,
                        .adjust = request.adjust,
                        .max_tokens = request.max_tokens,
                        .min_tokens = request.min_tokens,
                        .ignore_eos = request.ignore_eos,
                        .stop_ids = request.stop_ids,
                        .stop_strings = parsed.stop_strings,
                        .constraint = parsed.constraint});
}

absl::StatusOr<ChoicePlan> PlanChoice(const ParsedRequest& parsed, Request request,
                                      const ServedModel& model) {
  TextStream text(&model.tokenizer(), parsed.stop_strings);
  size_t taken = 0;
  if (!text.Resume(request.resume, &taken)) {
    return OutOfRange("resume_token_ids",
                      absl::StrCat("at most the ", taken, " ids up to a stop string"),
                      absl::StrCat(request.resume.size(), " ids"));
  }
  const bool complete =
      text.stopped() || request.resume.size() == static_cast<size_t>(request.max_tokens);
  if (!complete) {
    ASSIGN_OR_RETURN(request.constraint, model.MakeConstraint(parsed.constraint));
  }
  ReceiptHasher receipt = MakeReceipt(parsed, request, model.identity());
  return ChoicePlan{.request = std::move(request),
                    .text = std::move(text),
                    .receipt = std::move(receipt),
                    .complete = complete};
}

}  // namespace

absl::StatusOr<CallPlan> PlanCall(const ParsedRequest& parsed, const ServedModel& model) {
  CallPlan plan;
  plan.prompts = static_cast<int32_t>(parsed.prompts.size());
  for (const ParsedPrompt& prompt : parsed.prompts) {
    ASSIGN_OR_RETURN(std::vector<int32_t> ids, model.EncodePrompt(prompt));
    plan.prompt_tokens += static_cast<int64_t>(ids.size());
    ASSIGN_OR_RETURN(const Request first,
                     BuildEngineRequest(parsed, std::move(ids), model.limits()));
    for (int32_t i = 0; i < parsed.n; ++i) {
      Request request = first;
      request.sampling.seed += static_cast<uint64_t>(i);
      if (i > 0) request.prompt_logprobs = -1;  // told once a prompt
      ASSIGN_OR_RETURN(ChoicePlan choice, PlanChoice(parsed, std::move(request), model));
      choice.prompt = static_cast<int32_t>(plan.choices.size()) / parsed.n;
      if (parsed.echo && i == 0 && parsed.resume.empty()) {
        choice.echo = prompt.kind == ParsedPrompt::Kind::kText
                          ? prompt.text
                          : model.tokenizer().Decode(first.prompt, /*skip_control=*/true);
      }
      plan.choices.push_back(std::move(choice));
    }
  }
  return plan;
}

}  // namespace fixpoint
