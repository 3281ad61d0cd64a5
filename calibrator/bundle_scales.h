// What the integers of a bundle mean in the terms of calibration, so that the float forward pass
// can run any bundle: steps of the weights, gains, and the prefix. The scalar scales are not in the
// integers; they come from the provenance.
//
// A multiplier holds a product of scales. Steps and gains of the functions below have the very
// products that the integer engine applies, roundings of multipliers included.
#pragma once

#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "bundle/model.h"
#include "calibrator/calibration.h"
#include "calibrator/float_model.h"
#include "calibrator/integer_weights.h"

namespace fixpoint {

// The integer weights with their steps. Those of embedding, o_proj, gate_proj, down_proj and head
// follow from multipliers. Those of q_proj, k_proj and up_proj do up to one factor each and those
// of v_proj, whose multipliers hold a gain too, do not: what is open is fitted to the weights of
// `rotated` by least squares (some 2^-12 off), and ScalesOfBundle makes up for what the fit is off.
// `folded`: the integers were made of weights whose columns were divided by the gains of their
// site. `scalars`: gains are not read. INVALID_ARGUMENT when the shapes differ.
absl::StatusOr<IntegerWeights> WeightsOfBundle(const IntegerModel& model, const FloatModel& rotated,
                                               const Scales& scalars, bool folded,
                                               ThreadPool& pool);

// `scalars` with the gains that the integer engine applies, at every site; near 1 where none were
// trained. They differ from what QuantizeModel was given by the rounding of their multipliers M, up
// to 1 / (2M), and some 2^-15. `weights` are those of WeightsOfBundle or those that QuantizeModel
// was given. INVALID_ARGUMENT when scales, int16 sites or weights are of another model.
absl::StatusOr<Scales> ScalesOfBundle(const IntegerModel& model, const Scales& scalars,
                                      const IntegerWeights& weights);

// K and V of the prefix from the integers of the bundle, a trained one included. `scales` are those
// of ScalesOfBundle.
FloatPrefix PrefixOfBundle(const IntegerModel& model, const Scales& scales);

}  // namespace fixpoint
