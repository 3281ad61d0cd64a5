#include "calibrator/site_list.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "calibrator/site_search.h"

namespace fixpoint {
namespace {

SiteInfo OfLinear(const std::string& name, const LinearSite& site) {
  return {.name = name,
          .bits = site.wide ? 16 : 8,
          .granularity = site.gain.empty() ? "tensor" : "channel",
          .scale = absl::StrFormat("%.9g", site.scale)};
}

SiteInfo OfHeads(const std::string& name, const std::vector<double>& scales,
                 const std::vector<float>& gain) {
  return {.name = name,
          .bits = 8,
          .granularity = gain.empty() ? "head" : "channel",
          .scale = absl::StrFormat("%.9g", *std::max_element(scales.begin(), scales.end()))};
}

Saturation ShareOf(const std::string& name, const LinearSite& site,
                   const MagnitudeHistogram& histogram) {
  return {name, histogram.ShareAbove(127.5 * site.scale)};
}

}  // namespace

std::vector<SiteInfo> ListSites(const FloatConfig& config, const Scales& scales) {
  std::vector<SiteInfo> sites;
  const int32_t layers = config.num_hidden_layers;
  for (int32_t i = 0; i < layers; ++i) {
    const LayerScales& s = scales.layers[i];
    for (int32_t j = 0; j < kLayerLinearSites; ++j) {
      const LayerSite site = static_cast<LayerSite>(j);
      sites.push_back(OfLinear(SiteName({i, site}, layers), s.linear(site)));
    }
    sites.push_back(OfHeads(absl::StrCat("layers.", i, ".q"), s.q, s.q_gain));
    sites.push_back(OfHeads(absl::StrCat("layers.", i, ".k"), s.k, s.k_gain));
    sites.push_back(OfHeads(absl::StrCat("layers.", i, ".v"), s.v, s.v_gain));
  }
  sites.push_back(OfLinear("head_in", scales.head_in));
  return sites;
}

std::vector<Saturation> SaturatedShares(const FloatConfig& config, const Scales& scales,
                                        const Statistics& statistics) {
  std::vector<Saturation> shares;
  const int32_t layers = config.num_hidden_layers;
  for (int32_t i = 0; i < layers; ++i) {
    for (int32_t j = 0; j < kLayerLinearSites; ++j) {
      const LayerSite site = static_cast<LayerSite>(j);
      shares.push_back(ShareOf(SiteName({i, site}, layers), scales.layers[i].linear(site),
                               statistics.layers[i].linear[j]));
    }
  }
  shares.push_back(ShareOf("head_in", scales.head_in, statistics.head_in));
  return shares;
}

}  // namespace fixpoint
