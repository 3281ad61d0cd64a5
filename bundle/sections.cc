#include "bundle/sections.h"

#include <type_traits>
#include <utility>

namespace fixpoint {
namespace {

template <typename T>
constexpr const char* DtypeName() {
  if constexpr (std::is_same_v<T, int8_t>) {
    return "int8";
  } else if constexpr (std::is_same_v<T, int16_t>) {
    return "int16";
  } else {
    static_assert(std::is_same_v<T, int32_t>);
    return "int32";
  }
}

}  // namespace

std::vector<Section> PlanSections(const IntegerModel& model, uint64_t tokenizer_bytes,
                                  const std::function<bool(absl::string_view)>& has_optional) {
  std::vector<Section> sections;
  uint64_t offset = 0;
  const auto add = [&](std::string name, const char* dtype, int64_t rows, int64_t columns,
                       uint64_t bytes) {
    sections.push_back({std::move(name), dtype, rows, columns, offset, bytes});
    offset = AlignSection(offset + bytes);
  };
  VisitTensors(model, [&](const std::string& name, const auto& values, int64_t rows,
                          int64_t columns, bool optional) {
    using T = typename std::decay_t<decltype(values)>::value_type;
    if (optional && !has_optional(name)) return;
    add(name, DtypeName<T>(), rows, columns, static_cast<uint64_t>(rows * columns) * sizeof(T));
  });
  add(kTokenizerSection, "bytes", 1, static_cast<int64_t>(tokenizer_bytes), tokenizer_bytes);
  return sections;
}

uint64_t DataBytes(const std::vector<Section>& sections) {
  if (sections.empty()) return 0;
  return AlignSection(sections.back().offset + sections.back().bytes);
}

}  // namespace fixpoint
