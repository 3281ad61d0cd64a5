#include "server/client/generation_flags.h"

namespace fixpoint::client {

v1::GenerateRequest GenerationFlags::ToRequest() const {
  v1::GenerateRequest request;
  v1::Sampling* sampling = request.mutable_sampling();
  if (temperature.has_value()) sampling->set_temperature(*temperature);
  if (top_p.has_value()) sampling->set_top_p(*top_p);
  if (top_k.has_value()) sampling->set_top_k(*top_k);
  if (min_p.has_value()) sampling->set_min_p(*min_p);
  if (seed.has_value()) sampling->set_seed(*seed);
  v1::Stopping* stopping = request.mutable_stopping();
  if (max_tokens.has_value()) stopping->set_max_tokens(*max_tokens);
  for (const std::string& text : stop_strings) stopping->add_stop_strings(text);
  return request;
}

void AddTargetFlags(CLI::App* command, GenerationFlags* flags) {
  command
      ->add_option("--target", flags->targets,
                   "HOST:PORT[,HOST:PORT...]; the first that serves is used")
      ->delimiter(',')
      ->capture_default_str();
  command
      ->add_option("--connect-timeout", flags->connect_timeout, "Seconds to wait for each target")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
}

void AddGenerationFlags(CLI::App* command, GenerationFlags* flags) {
  AddTargetFlags(command, flags);
  command->add_option("--max-tokens", flags->max_tokens, "Tokens to generate at most");
  command->add_option("--temperature", flags->temperature, "0: greedy (default); else 0.01 to 100");
  command->add_option("--top-p", flags->top_p, "Keep the most probable tokens up to this sum");
  command->add_option("--top-k", flags->top_k, "Keep the k most probable tokens; 0: all");
  command->add_option("--min-p", flags->min_p,
                      "Drop tokens below this share of the most probable one");
  command->add_option("--seed", flags->seed, "Key of the random numbers; default 0");
  command
      ->add_option("--stop", flags->stop_strings,
                   "Text that ends the answer; may be given up to 4 times")
      ->take_all()
      ->allow_extra_args(false);
}

}  // namespace fixpoint::client
