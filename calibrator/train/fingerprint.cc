#include "calibrator/train/fingerprint.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/digest.h"

namespace fixpoint {

std::string TrainingFingerprint(const TrainingIdentity& in) {
  const CalibrationSettings& s = *in.settings;
  const TrainOptions& o = in.options;
  Sha256 digest;
  digest.Update(absl::StrCat(FIXPOINT_VERSION, "|", in.source_sha256, "|", in.corpus->digest, "|",
                             in.corpus->train.count(), "|", in.corpus->held_out.count(), "|",
                             s.budget, "|", s.rotation.seed, "|", s.int16_inputs, "|", in.rounding,
                             "|", absl::StrJoin(in.prefix_token_ids, ",")));
  digest.Update(absl::StrCat("|", static_cast<int>(o.objective), "|",
                             static_cast<int>(o.granularity), "|", static_cast<int>(o.vectors), "|",
                             o.round, "|", o.scale_rate, "|", o.gain_rate, "|", o.prefix_rate, "|",
                             o.steps, "|", o.batch_windows, "|", o.micro_windows, "|", o.clip_norm,
                             "|", o.average_decay));
  digest.Update(absl::StrCat("|", o.seed, "|", o.judge_every, "|", o.patience, "|", in.vector_loops,
                             "|", in.bf16));
  return digest.FinishHex();
}

}  // namespace fixpoint
