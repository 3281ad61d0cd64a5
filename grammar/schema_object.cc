#include "grammar/schema_object.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "grammar/json_rules.h"

namespace fixpoint {
namespace {

using Element = simdjson::dom::element;

absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

const KeywordSet& Annotations() {
  static const auto* names = new KeywordSet{
      "title",    "description", "default",  "examples",  "$schema", "$id",        "id",
      "$comment", "deprecated",  "readOnly", "writeOnly", "$defs",   "definitions"};
  return *names;
}

const char kDate[] =
    "[12]\\d{3}-((0[13578]|1[02])-(0[1-9]|[12]\\d|3[01])|(0[469]|11)-(0[1-9]|[12]\\d|30)|"
    "02-(0[1-9]|1\\d|2[0-8]))";
const char kTime[] =
    "([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,9})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)";

}  // namespace

const std::map<absl::string_view, KeywordSet>& KeywordsOfTypes() {
  static const auto* keywords = new std::map<absl::string_view, KeywordSet>{
      {"object", {"properties", "required", "additionalProperties"}},
      {"array", {"items", "prefixItems", "minItems", "maxItems"}},
      {"string", {"minLength", "maxLength", "pattern", "format"}},
      {"number", {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}},
      {"integer", {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}},
      {"boolean", {}},
      {"null", {}}};
  return *keywords;
}

std::string PatternOfFormat(absl::string_view format) {
  if (format == "date") return kDate;
  if (format == "time") return kTime;
  if (format == "date-time") return absl::StrCat(kDate, "T", kTime);
  if (format == "uuid") return "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}";
  const std::string octet = "(\\d|[1-9]\\d|1\\d\\d|2[0-4]\\d|25[0-5])";
  if (format == "ipv4") return absl::StrCat(octet, "(\\.", octet, "){3}");
  const std::string label = "[A-Za-z0-9]+(-[A-Za-z0-9]+)*";
  const std::string host = absl::StrCat(label, "(\\.", label, ")+");
  if (format == "email") return absl::StrCat("[A-Za-z0-9]+([._+-][A-Za-z0-9]+)*@", host);
  const std::string path = "[A-Za-z0-9._~!$&'()*+,;=:@-]*";
  if (format == "uri") {
    return absl::StrCat("[a-z]+://", host, "(:\\d{1,4})?(/", path, ")*(\\?[/?]*", path, ")?");
  }
  return "";
}

SchemaObject::SchemaObject(Element element, std::string path)
    : element_(element), path_(std::move(path)) {}

absl::Status SchemaObject::Open() {
  simdjson::dom::object object;
  if (element_.get(object) != simdjson::SUCCESS) {
    return Error("", "a schema must be an object, true or false");
  }
  for (const auto field : object) {
    if (!keywords_.emplace(std::string(field.key), field.value).second) {
      return Error(View(field.key), "stands twice");
    }
  }
  return absl::OkStatus();
}

std::string SchemaObject::PathOf(absl::string_view keyword) const {
  return absl::StrCat(path_, "/", keyword);
}

absl::Status SchemaObject::Error(absl::string_view keyword, absl::string_view what) const {
  return absl::InvalidArgumentError(
      absl::StrCat(keyword.empty() ? path_ : PathOf(keyword), ": ", what));
}

std::optional<Element> SchemaObject::Find(absl::string_view keyword) const {
  const auto found = keywords_.find(std::string(keyword));
  if (found == keywords_.end()) return std::nullopt;
  return found->second;
}

bool SchemaObject::HasAnyOf(const KeywordSet& keywords) const {
  return std::any_of(keywords.begin(), keywords.end(), [&](absl::string_view n) { return Has(n); });
}

absl::Status SchemaObject::AllowOnly(const KeywordSet& keywords, absl::string_view why) const {
  for (const auto& [keyword, value] : keywords_) {
    if (Annotations().count(keyword) == 0 && keywords.count(keyword) == 0 &&
        !absl::StartsWith(keyword, "x-")) {
      return Error(keyword, why);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> SchemaObject::Count(absl::string_view keyword, int64_t otherwise) const {
  const auto element = Find(keyword);
  if (!element.has_value()) return otherwise;
  int64_t count = 0;
  if (element->get(count) != simdjson::SUCCESS || count < 0) {
    return Error(keyword, "must be a whole number of at least 0");
  }
  return count;
}

absl::StatusOr<absl::string_view> SchemaObject::String(absl::string_view keyword) const {
  std::string_view text;
  if (Find(keyword)->get(text) != simdjson::SUCCESS) return Error(keyword, "must be a string");
  return View(text);
}

absl::StatusOr<simdjson::dom::array> SchemaObject::Array(absl::string_view keyword) const {
  simdjson::dom::array array;
  if (Find(keyword)->get(array) != simdjson::SUCCESS) return Error(keyword, "must be an array");
  return array;
}

absl::Status SchemaObject::Bound(absl::string_view keyword, std::optional<int64_t>* bound) const {
  const auto element = Find(keyword);
  if (!element.has_value()) return absl::OkStatus();
  double real = 0;
  int64_t whole = 0;
  if (element->get(whole) == simdjson::SUCCESS) {
    *bound = std::clamp(whole, -kMaxInteger - 1, kMaxInteger + 1);
  } else if (element->get(real) != simdjson::SUCCESS) {
    return Error(keyword, "must be a number");
  } else if (real != std::floor(real)) {
    return Error(keyword, "is supported for whole numbers only");
  } else {
    const auto far = static_cast<double>(kMaxInteger + 1);
    *bound = static_cast<int64_t>(std::clamp(real, -far, far));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> SchemaObject::Types() const {
  std::vector<Element> elements = {*Find("type")};
  simdjson::dom::array array;
  if (elements[0].get(array) == simdjson::SUCCESS) elements.assign(array.begin(), array.end());
  std::vector<std::string> types;
  for (const Element element : elements) {
    std::string_view type;
    if (element.get(type) != simdjson::SUCCESS || KeywordsOfTypes().count(View(type)) == 0) {
      return Error("type",
                   "must be object, array, string, number, integer, boolean or null, or "
                   "a list of them");
    }
    if (std::find(types.begin(), types.end(), type) != types.end()) {
      return Error("type", absl::StrCat("names '", View(type), "' twice"));
    }
    types.emplace_back(type);
  }
  if (types.empty()) return Error("type", "must not be empty");
  return types;
}

}  // namespace fixpoint
