// The report of a calibration: one HTML file that explains what a bundle costs against float, for
// people. It refers to nothing outside itself, runs no script, and is the same for the same data.
//
//   report.cc          the sections and their sentences
//   html               escaping, figures, tables
//   charts             the loss curve and the small marks inside tables
//   heat               the maps of layers by sites
//   sample_texts       completions side by side
//   style              the style sheet, light and dark
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace fixpoint {

// "Not measured": printed as a dash, as is every figure that is not finite.
inline constexpr double kNotMeasured = std::numeric_limits<double>::quiet_NaN();

enum class ReportTrack {
  kNotTrained,
  kNeutral,  // KL to the float teacher
  kAdapted,  // next-token loss on the user's text
};

// One model on held-out text.
struct ReportFigures {
  double perplexity = kNotMeasured;
  // Perplexity over that of float, in percent, and the standard error of paired windows in points.
  double relative_percent = kNotMeasured;
  double standard_error_percent = kNotMeasured;
  double kl = kNotMeasured;    // mean KL(float || model) a token, in nats
  double top1 = kNotMeasured;  // share of tokens with the same most likely token, 0 to 1
};

struct ReportPerplexityRow {
  std::string name;
  ReportFigures figures;
  std::string note;
  bool shipped = false;  // what the bundle does when it runs: set off from the rest
};

struct ReportTrainingPoint {
  int64_t step = 0;    // 0: before the first step
  int64_t tokens = 0;  // trained on so far
  double loss = kNotMeasured;
  double loss_smoothed = kNotMeasured;
  double held_out = kNotMeasured;
  double learning_rate = kNotMeasured;
};

struct ReportTraining {
  std::string loss_name = "KL to float on training text";  // nats a token
  std::string held_out_name = "KL to float on held-out text";
  std::vector<ReportTrainingPoint> points;  // in rising order of steps; empty: not trained
  int64_t kept_step = -1;                   // whose scales were kept; negative: none
  // Ends the sentence "Training ended: ...": "all steps done", "held-out KL rose three times".
  std::string stop_reason;
};

enum class ReportSiteKind : int32_t { kAttnIn, kQ, kK, kV, kOIn, kMlpIn, kDownIn, kHeadIn };
inline constexpr int32_t kReportSiteKinds = 8;
const char* ReportSiteName(ReportSiteKind kind);  // "attn_in"

// A quantized tensor. "Before" is before training; without training only "after" is known. Of q, k
// and v, which have a scale for each head: the geometric mean for scales, the mean for shares.
struct ReportSite {
  int32_t layer = 0;  // from 0; of no meaning for kHeadIn
  ReportSiteKind kind = ReportSiteKind::kAttnIn;
  int32_t bits = 8;
  double scale_before = kNotMeasured, scale_after = kNotMeasured;
  double saturated_before = kNotMeasured, saturated_after = kNotMeasured;  // share, 0 to 1
  // Mean square of the rounding error over the mean square of the values.
  double error_before = kNotMeasured, error_after = kNotMeasured;
  double gain_min = kNotMeasured, gain_max = kNotMeasured;  // of a trained vector
};

struct ReportWideSite {
  std::string name;
  double work_share = kNotMeasured;  // of the layers' multiplications, 0 to 1
  double kl_before = kNotMeasured, kl_after = kNotMeasured;
};

struct ReportWideSites {
  std::vector<ReportWideSite> chosen;  // in the order in which they were added
  std::string stop_reason;             // ends the sentence "The search ended: ..."
  double kl_start = kNotMeasured, kl_end = kNotMeasured;
};

// Text as the model wrote it, without the prompt.
struct ReportSample {
  std::string prompt, float_text, integer_text;
};

struct ReportDuration {
  std::string stage;
  double seconds = kNotMeasured;
};

struct ReportRun {
  std::vector<ReportDuration> durations;
  double peak_memory_bytes = kNotMeasured;
  double training_tokens_per_second = kNotMeasured;
  std::string products;              // what the peak is of: "bf16", "float32"
  double peak_share = kNotMeasured;  // of what the machine's cores can multiply, 0 to 1
  double peak_flops = kNotMeasured;  // a second
};

using ReportKeyValues = std::vector<std::pair<std::string, std::string>>;

struct ReportData {
  std::string model_name;
  std::string calibrator;  // "fixpoint-calibrate 0.1.0"
  ReportTrack track = ReportTrack::kNotTrained;
  ReportFigures integer;  // the integer engine, as shipped: the verdict
  int64_t held_out_tokens = 0;
  double budget_percent = kNotMeasured;  // perplexity that was allowed over float
  // Adapted track: perplexity over that of the float control, in percent.
  double control_gap_percent = kNotMeasured;
  std::vector<std::string> remarks;  // what a reader must know: "the loss diverged at step 40"
  std::vector<ReportPerplexityRow> perplexity;
  ReportTraining training;
  std::vector<ReportSite> sites;
  ReportWideSites wide_sites;
  std::vector<ReportSample> samples;
  ReportRun run;
  ReportKeyValues settings, digests;
};

// What is longer is cut, and the page says so.
inline constexpr size_t kMaxReportNameBytes = 200;
inline constexpr size_t kMaxReportNoteBytes = 1000;
inline constexpr size_t kMaxReportTextBytes = 4000;  // prompts and completions
inline constexpr size_t kMaxReportRows = 200;        // of each table but those below
inline constexpr size_t kMaxReportSamples = 24;
inline constexpr size_t kMaxReportTrainingPoints = 600;  // thinned evenly
inline constexpr size_t kMaxReportSites = 2048;          // 292 layers
// No data make the page larger than this.
inline constexpr size_t kMaxReportBytes = 16 << 20;

// The page. All strings may be hostile: they are escaped, invalid UTF-8 becomes U+FFFD, control
// characters become visible. Thread-safe.
std::string WriteReport(const ReportData& data);

}  // namespace fixpoint
