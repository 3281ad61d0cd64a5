// fixpoint-calibrate: turns a checkpoint into a bundle, and looks at bundles. Exit status: 0 done,
// 1 failed, 2 wrong command line.
#include <csignal>
#include <exception>
#include <functional>
#include <iostream>
#include <new>
#include <string>

#include <CLI/CLI.hpp>

#include "absl/status/status.h"
#include "calibrator/verbs.h"

namespace fixpoint {
namespace {

struct CommandLine {
  CalibrateFlags calibrate;
  EvalFlags eval;
  VerifyFlags verify;
  TokenizeFlags tokenize;
  RenderFlags render;
  InspectFlags inspect;
  std::string progress = "bar";
  std::string eval_progress = "bar";
};

CLI::App* Verb(CLI::App& app, const char* name, const char* description,
               std::function<absl::Status()> run, std::function<absl::Status()>* chosen) {
  CLI::App* verb = app.add_subcommand(name, description);
  verb->callback([chosen, run = std::move(run)] { *chosen = run; });
  return verb;
}

void AddCalibrate(CLI::App& app, CommandLine& c) {
  app.add_option("model", c.calibrate.model, "GGUF file or Hugging Face directory");
  app.add_option("-o,--output", c.calibrate.output, "the bundle to write");
  app.add_option("--corpus", c.calibrate.corpus,
                 "text file to calibrate on, repeatable (default: the model writes its own)")
      ->take_all();
  app.add_option("--budget", c.calibrate.budget,
                 "perplexity allowed over float; decides the int16 inputs")
      ->capture_default_str();
  app.add_option("--seed", c.calibrate.seed, "of rotation and generated text")
      ->capture_default_str();
  app.add_option("--threads", c.calibrate.threads, "0: every CPU")->capture_default_str();
  app.add_option("--progress", c.progress, "bar, json or none")->capture_default_str();
}

void AddVerbs(CLI::App& app, CommandLine& c, std::function<absl::Status()>* chosen) {
  CLI::App* eval = Verb(
      app, "eval", "perplexity, KL and top-1 of a bundle, integer beside float",
      [&c] { return RunEval(c.eval); }, chosen);
  eval->add_option("bundle", c.eval.bundle)->required();
  eval->add_option("--text", c.eval.text, "UTF-8 file")->required();
  eval->add_option("--source", c.eval.source, "the checkpoint that the bundle was made of");
  eval->add_option("--window", c.eval.window, "tokens of a window")->capture_default_str();
  eval->add_option("--limit", c.eval.limit, "windows to measure, 0: all")->capture_default_str();
  eval->add_option("--threads", c.eval.threads, "0: every CPU")->capture_default_str();
  eval->add_flag("--simulation", c.eval.simulation, "measure the fake-quantized float model too");
  eval->add_flag("--json", c.eval.json);
  eval->add_option("--progress", c.eval_progress, "bar or none")->capture_default_str();

  CLI::App* verify = Verb(
      app, "verify", "golden digest of a bundle's logits", [&c] { return RunVerify(c.verify); },
      chosen);
  verify->add_option("bundle", c.verify.bundle)->required();
  verify->add_option("--threads", c.verify.threads, "0: every CPU")->capture_default_str();
  verify->add_option("--chunk", c.verify.chunk, "prompt tokens per step, 0: as many as fit")
      ->capture_default_str();
  verify->add_flag("--json", c.verify.json);

  CLI::App* tokenize = Verb(
      app, "tokenize", "token ids of a text", [&c] { return RunTokenize(c.tokenize); }, chosen);
  tokenize
      ->add_option("model", c.tokenize.model,
                   "bundle, checkpoint, vocabulary-only GGUF or tokenizer.json")
      ->required();
  tokenize->add_option("--file", c.tokenize.file, "UTF-8 file, - for stdin")->capture_default_str();
  tokenize->add_flag("--special", c.tokenize.special, "control tokens in the text count as such");
  tokenize->add_flag("--json", c.tokenize.json);

  CLI::App* render = Verb(
      app, "render", "a chat as the model sees it", [&c] { return RunRender(c.render); }, chosen);
  render->add_option("model", c.render.model, "bundle, checkpoint or TEMPLATE.jinja")->required();
  render->add_option("--messages", c.render.messages, "JSON file")->required();
  render->add_option("--tools", c.render.tools, "JSON file");
  render->add_flag("--no-generation-prompt", c.render.no_generation_prompt);

  CLI::App* inspect = Verb(
      app, "inspect", "what a bundle is", [&c] { return RunInspect(c.inspect); }, chosen);
  inspect->add_option("bundle", c.inspect.bundle)->required();
  inspect->add_flag("--json", c.inspect.json);
}

absl::Status Execute(CommandLine& c, const std::function<absl::Status()>& chosen) {
  const absl::StatusOr<ProgressKind> progress =
      ParseProgressKind(chosen ? c.eval_progress : c.progress);
  if (!progress.ok()) return progress.status();
  if (chosen) {
    // Results own stdout, so JSON progress is for the calibration alone.
    if (*progress == ProgressKind::kJson)
      return absl::InvalidArgumentError("--progress json is for calibrating");
    c.eval.progress = *progress;
    return chosen();
  }
  if (c.calibrate.model.empty())
    return absl::InvalidArgumentError(
        "which model? fixpoint-calibrate MODEL -o OUT.fixpoint (see --help)");
  if (c.calibrate.output.empty())
    return absl::InvalidArgumentError("where to? give -o OUT.fixpoint");
  c.calibrate.progress = *progress;
  return RunCalibrate(c.calibrate);
}

int Main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  CLI::App app{
      "Turns a checkpoint (GGUF file or Hugging Face directory) into a static integer bundle."};
  app.set_version_flag("--version", "fixpoint-calibrate " FIXPOINT_VERSION);
  app.require_subcommand(0, 1);
  CommandLine command_line;
  std::function<absl::Status()> chosen;
  AddCalibrate(app, command_line);
  AddVerbs(app, command_line, &chosen);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  absl::Status status;
  try {
    status = Execute(command_line, chosen);
  } catch (const std::bad_alloc&) {
    status = absl::ResourceExhaustedError("out of memory");
  } catch (const std::exception& error) {
    status = absl::InternalError(error.what());
  }
  if (status.ok()) {
    std::cout.flush();
    if (std::cout.good()) return 0;
    status = absl::UnavailableError("stdout cannot be written");
  }
  std::cerr << "fixpoint-calibrate: " << status.message() << std::endl;
  return 1;
}

}  // namespace
}  // namespace fixpoint

int main(int argc, char** argv) { return fixpoint::Main(argc, argv); }
