// report_probe [neutral|adapted|untrained|hostile|huge|empty]: writes the report of an invented
// calibration to stdout, for tests/report_test.py and for looking at. The figures are made up and
// resemble those of a small model with 30 layers.
#include <cmath>
#include <cstdio>
#include <iostream>
#include <string>

#include "absl/strings/str_cat.h"
#include "calibrator/report/report.h"

namespace fixpoint {
namespace {

constexpr int32_t kLayers = 30, kSteps = 150, kKeptStep = 130;

// The same figures on every machine.
class Noise {
 public:
  // Uniform in [-1, 1).
  double operator()() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<double>(state_ >> 11) * 0x1p-52 - 1;
  }

 private:
  uint64_t state_ = 7;
};

ReportFigures Figures(double perplexity, double relative, double error, double kl, double top1) {
  return {perplexity, relative, error, kl, top1};
}

void AddPerplexity(ReportData* data) {
  const double base = 21.514;
  const auto add = [&](const char* name, double relative, double error, double kl, double top1,
                       const char* note, bool shipped = false) {
    data->perplexity.push_back(
        {name, Figures(base * (1 + relative / 100), relative, error, kl, top1), note, shipped});
  };
  data->perplexity.push_back({"float", Figures(base, kNotMeasured, kNotMeasured, kNotMeasured, 1),
                              "behind BOS alone: what all are measured against"});
  add("float + prefix", -0.08, 0.05, 0.0007, 0.986, "behind the prefix of the bundle, 2 tokens");
  add("untrained static", 5.92, 0.48, 0.0503, 0.861, "all inputs int8, clips of least error");
  add("untrained static, int16 sites", 1.21, 0.27, 0.0140, 0.929, "5 of 211 sites");
  if (data->track != ReportTrack::kNotTrained) {
    const bool adapted = data->track == ReportTrack::kAdapted;
    add("trained static", adapted ? -21.7 : 0.57, adapted ? 0.61 : 0.21, adapted ? 0.21 : 0.0097,
        adapted ? 0.79 : 0.941, "simulation, the same rounding as the engine");
    if (adapted) add("float control", -22.1, 0.6, 0.207, 0.793, "adapted in the same way");
  }
  add("dynamic per token, plain basis", 3.1, 0.42, 0.0355, 0.882, "what peers do");
  add("dynamic per token, rotated basis", 0.45, 0.2, 0.0087, 0.941, "the recipe of QuaRot");
  add("int8 weights alone", 0.06, 0.16, 0.0056, 0.952, "float activations: the floor");
  data->perplexity.push_back({"integer engine", data->integer, "what the bundle does", true});
}

void AddTraining(Noise& noise, ReportData* data) {
  ReportTraining& training = data->training;
  training.kept_step = kKeptStep;
  training.stop_reason = "held-out KL did not fall in two measurements";
  double smoothed = 0;
  for (int32_t step = 0; step <= kSteps; ++step) {
    ReportTrainingPoint point{.step = step, .tokens = step * 2048};
    const double ideal = 0.0118 + 0.0085 * std::exp(-step / 35.0);
    if (step > 0) {
      point.loss = ideal * std::exp(0.17 * noise());
      smoothed = step == 1 ? point.loss : 0.92 * smoothed + 0.08 * point.loss;
      point.loss_smoothed = smoothed;
      point.learning_rate = step < 10
                                ? 5e-3 * step / 10
                                : 2.5e-3 * (1 + std::cos(M_PI * (step - 10) / (kSteps - 9.0)));
    }
    if (step % 10 == 0) {
      point.held_out = 0.0099 + 0.0042 * std::exp(-step / 40.0) +
                       (step > kKeptStep ? 0.0002 * (step - kKeptStep) / 10 : 0);
    }
    if (data->track == ReportTrack::kAdapted) {
      point.loss = 2.9 + 20 * point.loss;
      point.loss_smoothed = 2.9 + 20 * point.loss_smoothed;
      point.held_out = 2.6 + 40 * point.held_out;
    }
    training.points.push_back(point);
  }
}

void AddSites(Noise& noise, ReportData* data) {
  const bool trained = data->track != ReportTrack::kNotTrained;
  for (int32_t layer = 0; layer <= kLayers; ++layer) {
    for (int32_t k = 0; k < kReportSiteKinds; ++k) {
      const ReportSiteKind kind = static_cast<ReportSiteKind>(k);
      if ((kind == ReportSiteKind::kHeadIn) != (layer == kLayers)) continue;
      const bool down = kind == ReportSiteKind::kDownIn;
      ReportSite site{.layer = layer, .kind = kind};
      if (down && (layer == 1 || layer == 2 || (layer >= 9 && layer <= 11))) site.bits = 16;
      const double heavy = down ? 1.6 : 0.4;
      site.scale_after = 0.02 * std::exp(0.8 * noise() + heavy);
      site.saturated_after = 3e-5 * std::exp(4 * noise() + heavy);
      if (k >= 1 && k <= 3 && noise() > 0.3) site.saturated_after = 0;
      site.error_after = 9e-5 * std::exp(1.2 * noise() + 2 * heavy);
      if (site.bits == 16) site.error_after = 4e-7 * std::exp(noise());
      if (trained) {
        const double change = std::exp(0.22 * noise() - (down ? 0.3 : 0.04) + 0.004 * layer);
        site.scale_before = site.scale_after / change;
        site.saturated_before = site.saturated_after * std::pow(change, 6);
        site.error_before = site.error_after * std::exp(0.2 * noise() + 0.2);
        if (k == 0 || k == 5) {
          site.gain_min = std::exp(-0.11 + 0.09 * noise());
          site.gain_max = std::exp(0.13 + 0.1 * noise());
        }
      }
      data->sites.push_back(site);
    }
  }
}

void AddWideSites(ReportData* data) {
  data->wide_sites = {
      .stop_reason = "the target of KL is reached", .kl_start = 0.0503, .kl_end = 0.0118};
  double kl = 0.0503;
  const double after[] = {0.0311, 0.0208, 0.0160, 0.0131, 0.0118};
  const int32_t layers[] = {11, 9, 1, 10, 2};
  for (int i = 0; i < 5; ++i) {
    data->wide_sites.chosen.push_back(
        {absl::StrCat("layers.", layers[i], ".down_in"), 0.0084, kl, after[i]});
    kl = after[i];
  }
}

void AddSamples(ReportData* data) {
  data->samples.push_back(
      {"What is the capital of France?",
       "The capital of France is Paris. It lies on the Seine and has been the seat of "
       "government since the Middle Ages.",
       "The capital of France is Paris. It lies on the Seine and has been the seat of "
       "government since the Middle Ages."});
  data->samples.push_back(
      {"Explain in two sentences why the sky is blue.",
       "Sunlight is scattered by the molecules of the air, and short waves are scattered far more "
       "than long ones.\n\nBlue light therefore reaches the eye from all directions, while red "
       "light comes straight from the sun.",
       "Sunlight is scattered by the molecules of the air, and short waves are scattered much more "
       "strongly than long ones.\n\nThat is why the sky looks blue in every direction but that of "
       "the sun."});
  data->samples.push_back(
      {"Write a Python function that reverses a string.",
       "def reverse(text):\n    return text[::-1]\n\nprint(reverse(\"Gr\u00fc\u00dfe, "
       "\u65e5\u672c\u8a9e\"))",
       "def reverse(text):\n    return \"\".join(reversed(text))\n\nprint(reverse(\"hello\"))"});
  data->samples.push_back({"Count to five.", "1, 2, 3, 4, 5", "1, 2, 3, 4, 5, 6"});
}

void AddRun(ReportData* data) {
  data->run = {.durations = {{"import", 3.1},
                             {"rotate", 4.4},
                             {"text", 96},
                             {"statistics", 21.8},
                             {"scales", 12.5},
                             {"training", 731},
                             {"int16 sites", 118},
                             {"quantize", 8.9},
                             {"verify", 64}},
               .peak_memory_bytes = 3.42 * (1 << 30),
               .training_tokens_per_second = 421.6,
               .products = "bf16",
               .peak_share = 0.273,
               .peak_flops = 1.21e12};
  data->settings = {{"objective", "kl"},
                    {"granularity", "channel"},
                    {"vectors", "gain"},
                    {"steps", "150"},
                    {"tokens a step", "4 x 512"},
                    {"learning rate", "0.005, cosine"},
                    {"gradient norm", "at most 1"},
                    {"seed", "0"},
                    {"budget", "1 %"},
                    {"prefix", "<|im_start|>system\\n"},
                    {"corpus", "calibration.txt, 1 file"},
                    {"rotation", "residual, V, q and k after RoPE, down_proj in blocks of 512"}};
  data->digests = {{"source", "5a1395716f7913741cc51d98581b9b1228d80987a9f7d3664106742eb06bba83"},
                   {"corpus", "1f40fc92da241694750979ee6cf582f2d5d7d28e18335de05abc54d0560e0f53"},
                   {"golden", "9c56cc51b374c3ba189210d5b6d4bf57790d351c96c47c02190ecf1e430635ab"}};
}

ReportData Realistic(ReportTrack track) {
  Noise noise;
  ReportData data{.model_name = "SmolLM2-135M-Instruct.Q4_1",
                  .calibrator = "fixpoint-calibrate (invented figures)",
                  .track = track,
                  .held_out_tokens = 8192,
                  .budget_percent = 1};
  data.integer = Figures(21.648, 0.62, 0.21, 0.00982, 0.941);
  if (track == ReportTrack::kNotTrained) data.integer = Figures(21.78, 1.24, 0.27, 0.0141, 0.928);
  if (track == ReportTrack::kAdapted) {
    data.integer = Figures(16.85, -21.68, 0.61, 0.2103, 0.79);
    data.control_gap_percent = 0.54;
    data.budget_percent = kNotMeasured;
    data.training.loss_name = "Loss of the next token on training text";
    data.training.held_out_name = "Loss of the next token on held-out text";
    data.remarks = {"The loss diverged at step 148; the best scales were kept."};
  }
  AddPerplexity(&data);
  if (track != ReportTrack::kNotTrained) AddTraining(noise, &data);
  AddSites(noise, &data);
  AddWideSites(&data);
  AddSamples(&data);
  AddRun(&data);
  return data;
}

// Every text an attack, every figure a trap.
ReportData Hostile() {
  constexpr char kAttack[] =
      "\"'><script>alert(1)</script><img src=x onerror=alert(2)></title></style></div>&lt;\xff\xfe"
      "\xc3(\xed\xa0\x80\0\x1b[31m\u202e-->]]>";
  const std::string attack(kAttack, sizeof(kAttack) - 1);
  ReportData data = Realistic(ReportTrack::kNeutral);
  data.model_name = data.calibrator = attack;
  data.remarks = {attack, std::string(1 << 20, 'w')};
  for (ReportPerplexityRow& row : data.perplexity) {
    row.name += attack;
    row.note = attack;
  }
  data.perplexity[2].figures = {INFINITY, -INFINITY, NAN, 1e308, -5};
  data.perplexity[3].figures = Figures(1e12, 1e300, 1e300, 1e-320, 2);
  data.training.loss_name = data.training.held_out_name = data.training.stop_reason = attack;
  data.training.points[20].loss = INFINITY;
  data.training.points[21].loss = 1e308;
  data.training.points[30].held_out = -INFINITY;
  data.sites[3].scale_before = 0;
  data.sites[4].saturated_after = INFINITY;
  data.sites[5].error_after = -1;
  data.sites[6].gain_min = -1e308;
  data.wide_sites.stop_reason = attack;
  for (ReportWideSite& site : data.wide_sites.chosen) site.name = attack;
  data.samples[0] = {attack, attack + "a", attack + "b"};
  data.samples[1] = {std::string(1 << 20, '<'), std::string(1 << 20, '\''),
                     std::string(1 << 20, '\'') + "x"};
  data.samples[2] = {"", "", std::string(5000, '\xe2')};
  data.run.durations.push_back({attack, INFINITY});
  data.run.peak_memory_bytes = -1;
  data.settings.push_back({attack, attack});
  data.digests.push_back({std::string(300, 'd'), std::string(3000, 'e')});
  return data;
}

// More of everything than the page takes.
ReportData Huge() {
  ReportData data = Hostile();
  const std::string quotes(1 << 14, '"');
  data.remarks.assign(3 * kMaxReportRows, quotes);
  data.perplexity.resize(2 * kMaxReportRows,
                         {quotes, Figures(1.0 / 3, -1.0 / 3, 1e-9, 1e-9, 1e-9), quotes});
  data.training.points.clear();
  for (int64_t i = 0; i < 50000; ++i) {
    data.training.points.push_back(
        {i * 1000003, i * 4000000007, 1e-9 * i, 1.0 / (i + 3), 1.0 / (i + 7), 1e-5 / (i + 3)});
  }
  data.sites.clear();
  for (int32_t i = 0; i < 40000; ++i) {
    data.sites.push_back({-(i / 7) * 100003, static_cast<ReportSiteKind>(i % 7), 16, 1.0 / (i + 3),
                          1.0 / (i + 4), 1e-9, 1e-8, 1e-7, 1.23e-6, 0.9, 1.1});
  }
  data.wide_sites.chosen.resize(2 * kMaxReportRows, {quotes, 0.1, 0.1, 0.01});
  data.samples.assign(2 * kMaxReportSamples, {quotes, quotes, quotes + "x"});
  data.run.durations.resize(2 * kMaxReportRows, {quotes, 1});
  data.settings.resize(2 * kMaxReportRows, {quotes, quotes});
  data.digests.resize(2 * kMaxReportRows, {quotes, quotes});
  return data;
}

int Run(const std::string& kind) {
  ReportData data;
  if (kind == "neutral") {
    data = Realistic(ReportTrack::kNeutral);
  } else if (kind == "adapted") {
    data = Realistic(ReportTrack::kAdapted);
  } else if (kind == "untrained") {
    data = Realistic(ReportTrack::kNotTrained);
  } else if (kind == "hostile") {
    data = Hostile();
  } else if (kind == "huge") {
    data = Huge();
  } else if (kind != "empty") {
    std::cerr << "usage: report_probe [neutral|adapted|untrained|hostile|huge|empty]\n";
    return 2;
  }
  const std::string html = WriteReport(data);
  return std::fwrite(html.data(), 1, html.size(), stdout) == html.size() && std::fflush(stdout) == 0
             ? 0
             : 1;
}

}  // namespace
}  // namespace fixpoint

int main(int argc, char** argv) { return fixpoint::Run(argc > 1 ? argv[1] : "neutral"); }
