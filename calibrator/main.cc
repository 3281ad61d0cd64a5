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
  ExportFlags export_;
  std::string progress = "bar";
  std::string eval_progress = "bar";
};

CLI::App* Verb(CLI::App& app, const char* name, const char* description,
               std::function<absl::Status()> run, std::function<absl::Status()>* chosen) {
  CLI::App* verb = app.add_subcommand(name, description);
  verb->callback([chosen, run = std::move(run)] { *chosen = run; });
  return verb;
}

void AddTraining(CLI::App& app, CalibrateFlags& f) {
  const auto option = [&app](const char* name, auto& value, const char* description) {
    return app.add_option(name, value, description)->capture_default_str();
  };
  option("--objective", f.objective,
         "kl: stay close to the float model; ce: predict the corpus (an adapted model, reported "
         "beside a float control); none: no training")
      ->check(CLI::IsMember({"kl", "ce", "none"}));
  option("--granularity", f.granularity, "of trained scales: one per tensor, or one per channel")
      ->check(CLI::IsMember({"tensor", "channel"}));
  option("--vectors", f.vectors,
         "gain: channel scales also scale the signal; folded: weights are divided by them")
      ->check(CLI::IsMember({"gain", "folded"}));
  option("--rounding", f.rounding, "of weights: gptq, or nearest")
      ->check(CLI::IsMember({"gptq", "nearest"}));
  option("--int16-inputs", f.int16_inputs, "auto: where the budget wants them; none")
      ->check(CLI::IsMember({"auto", "none"}));
  option("--steps", f.training.steps, "of training")->check(CLI::Range(1, 1000000));
  option("--batch", f.training.batch_windows, "windows of a step")->check(CLI::Range(1, 1024));
  option("--micro-batch", f.training.micro_windows, "windows in memory at once")
      ->check(CLI::Range(1, 1024));
  option("--scale-rate", f.training.scale_rate, "relative change of a scale in a step")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--gain-rate", f.gain_rate,
                 "the same of a channel's gain (default: 0.001, with ce 0.005)")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--prefix-rate", f.prefix_rate,
                 "change of the prefix's K and V in a step, in units of their size; 0: they stay "
                 "(default: 0, with --int16-inputs none 0.01)")
      ->check(CLI::Range(0.0, 1.0));
  option("--patience", f.training.patience, "looks at held-out text without a new best")
      ->check(CLI::Range(1, 1000000));
  app.add_flag("--no-prefix-search", f.no_prefix_search, "keep the prefix at one token");
  app.add_flag("--resume", f.resume, "go on from the checkpoint of a killed or stopped run");
  app.add_option("--checkpoint", f.checkpoint, "of the training (default: OUTPUT.checkpoint)");
  option("--checkpoint-seconds", f.checkpoint_seconds, "between two checkpoints; 0: each step")
      ->check(CLI::Range(0.0, 1e6));
  app.add_option("--report", f.report, "HTML (default: OUTPUT.report.html)");
  option("--device", f.device, "cpu, or cuda:N for the float products");
}

void AddCalibrate(CLI::App& app, CommandLine& c) {
  app.add_option("model", c.calibrate.model, "GGUF file or Hugging Face directory");
  app.add_option("-o,--output", c.calibrate.output, "the bundle to write");
  app.add_flag("--skip-existing", c.calibrate.skip_existing,
               "do nothing when OUTPUT is a whole bundle already");
  app.add_option("--corpus", c.calibrate.corpus,
                 "text file to calibrate on, repeatable (default: the model writes its own)")
      ->take_all();
  app.add_option("--budget", c.calibrate.budget,
                 "perplexity allowed over float; decides the int16 inputs (default: 1%, with ce "
                 "0.3%)");
  app.add_option("--seed", c.calibrate.seed, "of rotation and generated text")
      ->capture_default_str();
  AddTraining(app, c.calibrate);
  app.add_option("--threads", c.calibrate.threads, "0: every CPU")->capture_default_str();
  app.add_option("--progress", c.progress, "bar, json or none")->capture_default_str();
}

void AddEval(CLI::App& app, CommandLine& c, std::function<absl::Status()>* chosen) {
  CLI::App* eval = app.add_subcommand(
      "eval", "perplexity, KL and top-1 of bundles, integer beside float, or of two bundles");
  EvalFlags& flags = c.eval;
  eval->add_option("bundle", flags.bundle, "the bundle; none with --float");
  eval->add_option("--text", flags.text, "UTF-8 file of any kind of text");
  eval->add_option("--source", flags.source, "the checkpoint that the bundle was made of");
  eval->add_option("--against", flags.against, "another bundle: paired bootstrap over windows");
  eval->add_option("--window", flags.window,
                   "tokens of a window (default: 1024, or all that the model has room for)");
  eval->add_option("--stride", flags.stride,
                   "tokens from one window to the next; below the window only the last of them "
                   "count; 0: the window")
      ->capture_default_str();
  eval->add_option("--limit", flags.limit, "windows to measure, evenly spread, 0: all")
      ->capture_default_str();
  eval->add_option("--prefix", flags.prefix,
                   "what float is measured behind: own (the bundle's), bos, none, or token ids "
                   "such as 1,2 (default: own and bos)");
  eval->add_flag("--simulation", flags.simulation, "measure the fake-quantized float model too");
  eval->add_flag("--dynamic", flags.dynamic,
                 "measure dynamic per-token int8 in the rotated and in the plain basis too");
  eval->add_flag("--float", flags.float_alone, "measure the float model alone");
  eval->add_option("--threads", flags.threads, "0: every CPU")->capture_default_str();
  eval->add_flag("--json", flags.json);
  eval->add_option("--progress", c.eval_progress, "bar or none")->capture_default_str();
  eval->callback([&c, chosen] {
    if (c.eval.bundle.empty() && !c.eval.float_alone)
      throw CLI::RequiredError("bundle (or --float with --source)");
    if (c.eval.text.empty()) throw CLI::RequiredError("--text");
    *chosen = [&c] { return RunEval(c.eval); };
  });
}

void AddVerbs(CLI::App& app, CommandLine& c, std::function<absl::Status()>* chosen) {
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
  inspect->add_flag("--sites", c.inspect.sites, "list every site: scale, bits, saturation");
  inspect->add_flag("--json", c.inspect.json);
}

void AddExport(CLI::App& app, CommandLine& c, std::function<absl::Status()>* chosen) {
  CLI::App* verb = Verb(
      app, "export", "a bundle as a static W8A8 checkpoint for other servers",
      [&c] { return RunExport(c.export_); }, chosen);
  verb->add_option("bundle", c.export_.bundle)->required();
  verb->add_option("--to", c.export_.to, "compressed-tensors")->capture_default_str();
  verb->add_option("--source", c.export_.source, "the checkpoint that the bundle was made of")
      ->required();
  verb->add_option("-o,--output", c.export_.output, "the folder to write")->required();
  verb->add_option("--corpus", c.export_.corpus,
                   "text file to calibrate on, repeatable (default: the model writes its own)")
      ->take_all();
  verb->add_option("--ignore", c.export_.ignore,
                   "auto: costly layers stay bf16 until the budget holds; none: all int8")
      ->capture_default_str();
  verb->add_option("--budget", c.export_.budget, "perplexity allowed over float")
      ->capture_default_str();
  verb->add_option("--seed", c.export_.seed, "of generated text")->capture_default_str();
  verb->add_option("--threads", c.export_.threads, "0: every CPU")->capture_default_str();
  verb->add_flag("--json", c.export_.json);
  verb->add_option("--progress", c.eval_progress, "bar or none")->capture_default_str();
}

absl::Status Execute(CommandLine& c, const std::function<absl::Status()>& chosen) {
  const absl::StatusOr<ProgressKind> progress =
      ParseProgressKind(chosen ? c.eval_progress : c.progress);
  if (!progress.ok()) return progress.status();
  if (chosen) {
    // Results own stdout, so JSON progress is for the calibration alone.
    if (*progress == ProgressKind::kJson)
      return absl::InvalidArgumentError("--progress json is for calibrating");
    c.eval.progress = c.export_.progress = *progress;
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
  AddEval(app, command_line, &chosen);
  AddVerbs(app, command_line, &chosen);
  AddExport(app, command_line, &chosen);
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
