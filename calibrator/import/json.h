// JSON files of a checkpoint, on simdjson: UTF-8 checked, depth capped, duplicate keys refused.
// Bytes are untrusted.
#pragma once

#include <simdjson.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fixpoint {

// An object together with its place ("config.json: rope_scaling") for messages. Lives as long as
// its JsonDocument. Every getter treats JSON null as absent, and answers INVALID_ARGUMENT naming
// place and key on another type.
class JsonObject {
 public:
  JsonObject(simdjson::dom::object object, std::string place)
      : object_(object), place_(std::move(place)) {}

  const simdjson::dom::object& object() const { return object_; }
  const std::string& place() const { return place_; }

  std::optional<simdjson::dom::element> Find(absl::string_view key) const;  // null counts as absent
  absl::StatusOr<std::optional<int64_t>> FindInt(absl::string_view key) const;
  absl::StatusOr<std::optional<double>> FindDouble(
      absl::string_view key) const;  // any finite number
  absl::StatusOr<std::optional<bool>> FindBool(absl::string_view key) const;
  absl::StatusOr<std::optional<std::string>> FindString(absl::string_view key) const;
  absl::StatusOr<std::optional<JsonObject>> FindObject(absl::string_view key) const;

  // The error of a getter: "PLACE: KEY: message".
  absl::Status Error(absl::string_view key, absl::string_view message) const;

 private:
  simdjson::dom::object object_;
  std::string place_;
};

class JsonDocument {
 public:
  // `text` must be one JSON object without duplicate keys, nested at most max_depth deep. `place`
  // (a file path) begins every message.
  static absl::StatusOr<JsonDocument> Parse(absl::string_view text, const std::string& place,
                                            size_t max_depth);

  const JsonObject& root() const { return *root_; }

 private:
  JsonDocument() = default;

  std::unique_ptr<simdjson::dom::parser> parser_;  // owns what root_ points into
  std::optional<JsonObject> root_;
};

}  // namespace fixpoint
