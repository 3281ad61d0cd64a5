#include "server/client/generation_flags.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"

namespace fixpoint::client {
namespace {

constexpr uint64_t kMaxSchemaBytes = 64 << 10;  // as the server's

void AddSampling(const GenerationFlags& flags, v1::Sampling* sampling) {
  if (flags.temperature.has_value()) sampling->set_temperature(*flags.temperature);
  if (flags.top_p.has_value()) sampling->set_top_p(*flags.top_p);
  if (flags.top_k.has_value()) sampling->set_top_k(*flags.top_k);
  if (flags.min_p.has_value()) sampling->set_min_p(*flags.min_p);
  if (flags.seed.has_value()) sampling->set_seed(*flags.seed);
  if (flags.presence_penalty.has_value()) {
    sampling->set_presence_penalty(*flags.presence_penalty);
  }
  if (flags.frequency_penalty.has_value()) {
    sampling->set_frequency_penalty(*flags.frequency_penalty);
  }
  if (flags.repetition_penalty.has_value()) {
    sampling->set_repetition_penalty(*flags.repetition_penalty);
  }
}

absl::Status AddBias(const std::string& text, v1::Sampling* sampling) {
  const size_t colon = text.find(':');
  uint32_t id = 0;
  double bias = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(text.substr(0, colon), &id) ||
      !absl::SimpleAtod(text.substr(colon + 1), &bias)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--logit-bias: '", text, "' is not TOKEN_ID:BIAS, for example 42:-1.5"));
  }
  v1::LogitBias* added = sampling->add_logit_bias();
  added->set_token_id(id);
  added->set_bias(bias);
  return absl::OkStatus();
}

void AddStopping(const GenerationFlags& flags, v1::Stopping* stopping) {
  if (flags.max_tokens.has_value()) stopping->set_max_tokens(*flags.max_tokens);
  if (flags.min_tokens.has_value()) stopping->set_min_tokens(*flags.min_tokens);
  if (flags.ignore_eos) stopping->set_ignore_eos(true);
  for (const std::string& text : flags.stop_strings) stopping->add_stop_strings(text);
  for (const uint32_t id : flags.stop_ids) stopping->add_stop_ids(id);
}

absl::Status AddConstraint(const GenerationFlags& flags, v1::GenerateRequest* request) {
  if (!flags.json_schema_file.empty()) {
    absl::StatusOr<std::string> schema = ReadWholeFile(flags.json_schema_file, kMaxSchemaBytes);
    if (!schema.ok()) return Annotate(schema.status(), "--json-schema");
    request->mutable_constraint()->set_json_schema(*std::move(schema));
  }
  if (flags.regex.has_value()) request->mutable_constraint()->set_regex(*flags.regex);
  if (flags.json_object) request->mutable_constraint()->set_json_object(true);
  return absl::OkStatus();
}

void AddSamplingFlags(CLI::App* command, GenerationFlags* flags) {
  command->add_option("--temperature", flags->temperature, "0: greedy (default); else 0.01 to 100");
  command->add_option("--top-p", flags->top_p, "Keep the most probable tokens up to this sum");
  command->add_option("--top-k", flags->top_k, "Keep the k most probable tokens; 0: all");
  command->add_option("--min-p", flags->min_p,
                      "Drop tokens below this share of the most probable one");
  command->add_option("--seed", flags->seed, "Key of the random numbers; default 0");
  command->add_option("--presence-penalty", flags->presence_penalty,
                      "Against tokens that the answer has already, -2 to 2");
  command->add_option("--frequency-penalty", flags->frequency_penalty,
                      "The same for each time that it has them");
  command->add_option("--repetition-penalty", flags->repetition_penalty,
                      "Divides their logits, those of the prompt's tokens too; 0.01 to 100");
  command
      ->add_option("--logit-bias", flags->logit_bias,
                   "TOKEN_ID:BIAS[,...], added to logits; -100 to 100")
      ->delimiter(',')
      ->take_all()
      ->allow_extra_args(false);
}

void AddStoppingFlags(CLI::App* command, GenerationFlags* flags) {
  command->add_option("--max-tokens", flags->max_tokens, "Tokens to generate at most");
  command->add_option("--min-tokens", flags->min_tokens, "No end of sequence before so many");
  command
      ->add_option("--stop", flags->stop_strings,
                   "Text that ends the answer; may be given up to 4 times")
      ->take_all()
      ->allow_extra_args(false);
  command->add_option("--stop-ids", flags->stop_ids, "ID[,ID...]: tokens that end the answer")
      ->delimiter(',')
      ->take_all()
      ->allow_extra_args(false);
  command->add_flag("--ignore-eos", flags->ignore_eos, "Go on after end-of-sequence tokens");
}

void AddConstraintFlags(CLI::App* command, GenerationFlags* flags) {
  CLI::Option* schema = command->add_option("--json-schema", flags->json_schema_file,
                                            "File with a JSON Schema that the answer obeys");
  CLI::Option* regex = command->add_option("--regex", flags->regex,
                                           "Regular expression that the whole answer matches");
  CLI::Option* object =
      command->add_flag("--json-object", flags->json_object, "The answer is a JSON object");
  schema->excludes(regex)->excludes(object);
  regex->excludes(object);
}

}  // namespace

absl::StatusOr<v1::GenerateRequest> GenerationFlags::ToRequest() const {
  v1::GenerateRequest request;
  AddSampling(*this, request.mutable_sampling());
  for (const std::string& text : logit_bias) {
    RETURN_IF_ERROR(AddBias(text, request.mutable_sampling()));
  }
  AddStopping(*this, request.mutable_stopping());
  if (top_logprobs.has_value()) request.mutable_output()->set_top_logprobs(*top_logprobs);
  if (prompt_logprobs.has_value()) request.mutable_output()->set_prompt_logprobs(*prompt_logprobs);
  RETURN_IF_ERROR(AddConstraint(*this, &request));
  if (speculation == "auto") request.set_speculation(v1::SPECULATION_AUTO);
  if (speculation == "on") request.set_speculation(v1::SPECULATION_ON);
  if (speculation == "off") request.set_speculation(v1::SPECULATION_OFF);
  if (cache_salt.has_value()) request.set_cache_salt(*cache_salt);
  if (no_cache) request.set_use_cache(false);
  if (priority.has_value()) request.set_priority(*priority);
  for (const uint32_t id : resume_ids) request.add_resume_token_ids(id);
  return request;
}

void AddGenerationFlags(CLI::App* command, GenerationFlags* flags) {
  AddSamplingFlags(command, flags);
  AddStoppingFlags(command, flags);
  AddConstraintFlags(command, flags);
  command->add_option("--logprobs", flags->top_logprobs,
                      "With --json: log-probability of each token and of so many top ones");
  command->add_option("--prompt-logprobs", flags->prompt_logprobs,
                      "With --json: the same for the prompt");
  command
      ->add_option("--speculation", flags->speculation,
                   "Prompt lookup; changes how fast an answer comes, never a token")
      ->check(CLI::IsMember({"auto", "on", "off"}));
  command->add_option("--cache-salt", flags->cache_salt,
                      "Share cached prompts only with requests of the same salt");
  command->add_flag("--no-cache", flags->no_cache, "Use no cached prompts and leave none");
  command->add_option("--priority", flags->priority,
                      "-100 to 100; waiting requests of a higher one start first");
  command
      ->add_option("--resume-ids", flags->resume_ids,
                   "ID[,ID...]: tokens that an earlier call with this request has given; the "
                   "answer goes on behind them")
      ->delimiter(',')
      ->take_all()
      ->allow_extra_args(false);
}

}  // namespace fixpoint::client
