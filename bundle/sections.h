// Where each tensor lies in the file: one plan that writer and reader share.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "bundle/format.h"
#include "bundle/model.h"

namespace fixpoint {

inline constexpr char kTokenizerSection[] = "tokenizer";
inline constexpr uint64_t kMaxTokenizerBytes = 256u << 20;

struct Section {
  std::string name;
  std::string dtype;  // "int8", "int16", "int32", or "bytes" for the tokenizer
  int64_t rows = 0;
  int64_t columns = 0;
  uint64_t offset = 0;  // from FileHeader::data_offset
  uint64_t bytes = 0;
  bool operator==(const Section&) const = default;
};

// Rounded up to a multiple of kSectionAlign. Requires value <= 2^63.
constexpr uint64_t AlignSection(uint64_t value) {
  return (value + kSectionAlign - 1) / kSectionAlign * kSectionAlign;
}

// Sections in file order: the tensors of VisitTensors, then the tokenizer. An optional tensor is
// planned when has_optional says so. Only config, number of layers and prefix length of `model` are
// looked at; ValidateConfig must have passed: then no sum below overflows (at most 2^16 sections of
// less than 2^35 bytes).
std::vector<Section> PlanSections(const IntegerModel& model, uint64_t tokenizer_bytes,
                                  const std::function<bool(absl::string_view)>& has_optional);

// Bytes from data_offset to the chunk table.
uint64_t DataBytes(const std::vector<Section>& sections);

}  // namespace fixpoint
