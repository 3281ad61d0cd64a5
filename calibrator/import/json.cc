#include "calibrator/import/json.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace fixpoint {
namespace {

using simdjson::dom::element_type;

absl::Status RefuseDuplicateKeys(const simdjson::dom::element& element, const std::string& place) {
  simdjson::dom::array array;
  if (!element.get(array)) {
    for (const simdjson::dom::element item : array) {
      if (absl::Status status = RefuseDuplicateKeys(item, place); !status.ok()) return status;
    }
    return absl::OkStatus();
  }
  simdjson::dom::object object;
  if (element.get(object)) return absl::OkStatus();
  std::vector<std::string_view> keys;
  for (const simdjson::dom::key_value_pair field : object) {
    keys.push_back(field.key);
    if (absl::Status status = RefuseDuplicateKeys(field.value, place); !status.ok()) return status;
  }
  std::sort(keys.begin(), keys.end());
  const auto twice = std::adjacent_find(keys.begin(), keys.end());
  if (twice == keys.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      place, ": key \"", absl::CHexEscape(absl::string_view(twice->data(), twice->size())),
      "\" appears twice in one object"));
}

}  // namespace

absl::StatusOr<JsonDocument> JsonDocument::Parse(absl::string_view text, const std::string& place,
                                                 size_t max_depth) {
  JsonDocument document;
  document.parser_ = std::make_unique<simdjson::dom::parser>();
  // simdjson takes its depth limit only together with a capacity. 64 bytes are its least useful
  // one.
  simdjson::error_code error =
      document.parser_->allocate(std::max<size_t>(text.size(), 64), max_depth);
  simdjson::dom::element element;
  if (!error) error = document.parser_->parse(text.data(), text.size()).get(element);
  if (error) {
    return absl::InvalidArgumentError(
        absl::StrCat(place, ": not valid JSON: ", simdjson::error_message(error)));
  }
  simdjson::dom::object object;
  if (element.get(object)) {
    return absl::InvalidArgumentError(absl::StrCat(place, ": the JSON is not an object"));
  }
  if (absl::Status status = RefuseDuplicateKeys(element, place); !status.ok()) return status;
  document.root_.emplace(object, place);
  return document;
}

absl::Status JsonObject::Error(absl::string_view key, absl::string_view message) const {
  return absl::InvalidArgumentError(absl::StrCat(place_, ": ", key, ": ", message));
}

std::optional<simdjson::dom::element> JsonObject::Find(absl::string_view key) const {
  simdjson::dom::element element;
  if (object_.at_key(std::string_view(key.data(), key.size())).get(element)) return std::nullopt;
  if (element.is_null()) return std::nullopt;
  return element;
}

absl::StatusOr<std::optional<int64_t>> JsonObject::FindInt(absl::string_view key) const {
  const std::optional<simdjson::dom::element> element = Find(key);
  if (!element.has_value()) return std::nullopt;
  int64_t value = 0;
  if (element->type() != element_type::INT64 || element->get(value)) {
    return Error(key, "is not an integer below 2^63");
  }
  return value;
}

absl::StatusOr<std::optional<double>> JsonObject::FindDouble(absl::string_view key) const {
  const std::optional<simdjson::dom::element> element = Find(key);
  if (!element.has_value()) return std::nullopt;
  double value = 0;
  if (element->get(value) || !std::isfinite(value)) return Error(key, "is not a finite number");
  return value;
}

absl::StatusOr<std::optional<bool>> JsonObject::FindBool(absl::string_view key) const {
  const std::optional<simdjson::dom::element> element = Find(key);
  if (!element.has_value()) return std::nullopt;
  bool value = false;
  if (element->get(value)) return Error(key, "is not true or false");
  return value;
}

absl::StatusOr<std::optional<std::string>> JsonObject::FindString(absl::string_view key) const {
  const std::optional<simdjson::dom::element> element = Find(key);
  if (!element.has_value()) return std::nullopt;
  std::string_view value;
  if (element->get(value)) return Error(key, "is not a string");
  return std::string(value);
}

absl::StatusOr<std::optional<JsonObject>> JsonObject::FindObject(absl::string_view key) const {
  const std::optional<simdjson::dom::element> element = Find(key);
  if (!element.has_value()) return std::nullopt;
  simdjson::dom::object value;
  if (element->get(value)) return Error(key, "is not an object");
  return JsonObject(value, absl::StrCat(place_, ": ", key));
}

}  // namespace fixpoint
