// Answers as wire messages.
#pragma once

#include "fixpoint/v1/generation.pb.h"
#include "server/answer.h"
#include "server/served_model.h"

namespace fixpoint {

// Each fills an empty message.
void FillDelta(AnswerDelta delta, const Tokenizer& tokenizer, v1::Delta* out);
void FillLogprobs(const PositionLogprobs& logprobs, const Tokenizer& tokenizer, v1::Logprobs* out);
// Requires an end that is no failure: kStop or kLength.
void FillFinished(const AnswerEnd& end, v1::Finished* out);
void FillModel(const ServedModel& model, v1::GetModelResponse* out);
void FillLoad(const EngineLoad& load, bool draining, v1::GetLoadResponse* out);

}  // namespace fixpoint
