#include "server/client/target_flags.h"

#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace fixpoint::client {
namespace {

constexpr double kMaxSeconds = 86400;

absl::Duration OrInfinite(double seconds) {
  return seconds > 0 ? absl::Seconds(seconds) : absl::InfiniteDuration();
}

}  // namespace

ClientOptions TargetFlags::ToOptions() const {
  ClientOptions options;
  options.targets = targets;
  options.connect_timeout = absl::Seconds(connect_timeout);
  options.retry.retries = retries;
  options.retry.stall_timeout = OrInfinite(stall_timeout);
  options.retry.first_message_timeout = OrInfinite(first_message_timeout);
  return options;
}

CallOptions TargetFlags::ToCallOptions() const {
  CallOptions options;
  options.deadline = absl::Now() + OrInfinite(deadline);
  if (verbose) {
    options.on_break = [](const Break& b) {
      std::cerr << absl::StrCat("fixpoint: broke behind ", b.tokens, " tokens at ", b.target, ": ",
                                absl::StatusCodeToString(b.status.code()), ": ", b.status.message(),
                                "\n");
    };
  }
  return options;
}

void AddTargetFlags(CLI::App* command, TargetFlags* flags) {
  command
      ->add_option("--target", flags->targets,
                   "HOST:PORT[,HOST:PORT...], replicas of one model: when one fails, the next is "
                   "asked")
      ->delimiter(',')
      ->take_all()
      ->allow_extra_args(false)
      ->capture_default_str();
  command
      ->add_option("--connect-timeout", flags->connect_timeout, "Seconds to wait for a connection")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
}

void AddCallFlags(CLI::App* command, TargetFlags* flags) {
  AddTargetFlags(command, flags);
  command
      ->add_option("--deadline", flags->deadline,
                   "Seconds that the whole call may take; 0: any time")
      ->check(CLI::Range(0.0, kMaxSeconds))
      ->capture_default_str();
  command
      ->add_option("--retries", flags->retries,
                   "How often a target that fails in a row is asked again")
      ->check(CLI::Range(0, 1000000))
      ->capture_default_str();
  command
      ->add_option("--stall-timeout", flags->stall_timeout,
                   "Seconds without a message after which a stream counts as broken; 0: never")
      ->check(CLI::Range(0.0, kMaxSeconds))
      ->capture_default_str();
  command
      ->add_option(
          "--first-message-timeout", flags->first_message_timeout,
          "The same for the first message, for which a request may have to queue; 0: never")
      ->check(CLI::Range(0.0, kMaxSeconds))
      ->capture_default_str();
  command->add_flag("--verbose", flags->verbose, "Tell on stderr about streams that broke");
}

}  // namespace fixpoint::client
