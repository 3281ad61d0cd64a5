// Reading JSON objects of which every key is known and must be there.
#pragma once

#include <simdjson.h>

#include <cstdint>
#include <map>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/status_macros.h"

namespace fixpoint {

// One JSON object. Errors are INVALID_ARGUMENT and name the key with the path in front
// ("layers.3.q_before.k").
class StrictObject {
 public:
  static absl::StatusOr<StrictObject> Open(simdjson::dom::element element, std::string path) {
    simdjson::dom::object object;
    if (element.get(object) != simdjson::SUCCESS) {
      return absl::InvalidArgumentError(absl::StrCat("'", path, "' must be an object"));
    }
    StrictObject result(std::move(path));
    for (const simdjson::dom::key_value_pair field : object) {
      const absl::string_view key(field.key.data(), field.key.size());
      if (!result.fields_.try_emplace(std::string(key), Field{field.value}).second) {
        return absl::InvalidArgumentError(
            absl::StrCat("key '", result.PathOf(key), "' stands twice"));
      }
    }
    return result;
  }

  absl::StatusOr<simdjson::dom::element> Get(absl::string_view key) {
    const auto it = fields_.find(std::string(key));
    if (it == fields_.end()) {
      return absl::InvalidArgumentError(absl::StrCat("key '", PathOf(key), "' is missing"));
    }
    it->second.used = true;
    return it->second.value;
  }

  // T: bool, int32_t, int64_t, uint64_t or std::string.
  template <typename T>
  absl::Status Read(absl::string_view key, T* out) {
    ASSIGN_OR_RETURN(const simdjson::dom::element element, Get(key));
    return ReadElement(element, PathOf(key), out);
  }

  absl::StatusOr<simdjson::dom::array> Array(absl::string_view key) {
    ASSIGN_OR_RETURN(const simdjson::dom::element element, Get(key));
    simdjson::dom::array array;
    if (element.get(array) != simdjson::SUCCESS) return WrongType(PathOf(key), "an array");
    return array;
  }

  // An error if a key was never asked for.
  absl::Status Finish() const {
    for (const auto& [key, field] : fields_) {
      if (!field.used) {
        return absl::InvalidArgumentError(absl::StrCat("unknown key '", PathOf(key), "'"));
      }
    }
    return absl::OkStatus();
  }

  std::string PathOf(absl::string_view key) const {
    return path_.empty() ? std::string(key) : absl::StrCat(path_, ".", key);
  }

  template <typename T>
  static absl::Status ReadElement(simdjson::dom::element element, const std::string& path, T* out) {
    if constexpr (std::is_same_v<T, std::string>) {
      std::string_view text;
      if (element.get(text) != simdjson::SUCCESS) return WrongType(path, "a string");
      *out = std::string(text);
    } else if constexpr (std::is_same_v<T, bool>) {
      if (element.get(*out) != simdjson::SUCCESS) return WrongType(path, "true or false");
    } else {
      using Wide = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
      Wide wide = 0;
      if (element.get(wide) != simdjson::SUCCESS ||
          wide != static_cast<Wide>(static_cast<T>(wide))) {
        return WrongType(
            path, absl::StrCat(std::is_signed_v<T> ? "an integer of " : "a natural number of ",
                               8 * sizeof(T), " bits"));
      }
      *out = static_cast<T>(wide);
    }
    return absl::OkStatus();
  }

 private:
  struct Field {
    simdjson::dom::element value;
    bool used = false;
  };
  explicit StrictObject(std::string path) : path_(std::move(path)) {}

  static absl::Status WrongType(const std::string& path, absl::string_view wanted) {
    return absl::InvalidArgumentError(absl::StrCat("'", path, "' must be ", wanted));
  }

  std::string path_;
  std::map<std::string, Field>
      fields_;  // sorted: the unknown key that is named does not depend on a hash
};

}  // namespace fixpoint
