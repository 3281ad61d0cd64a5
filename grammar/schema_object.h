// One schema of a JSON schema document: its keywords, read and checked one by one.
#pragma once

#include <simdjson.h>

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fixpoint {

using KeywordSet = std::set<absl::string_view>;

// By type name: the keywords that say something about its values and nothing about others.
const std::map<absl::string_view, KeywordSet>& KeywordsOfTypes();

// An expression for values of a format, a part of what the format allows; empty when the format is
// not known.
std::string PatternOfFormat(absl::string_view format);

// A schema that is an object. Errors are INVALID_ARGUMENT and begin with the place: `path` is a
// JSON pointer with '#' in front. The document must outlive it.
class SchemaObject {
 public:
  SchemaObject(simdjson::dom::element element, std::string path);

  // To be called first. Errors: not an object, a keyword that stands twice.
  absl::Status Open();

  const std::string& path() const { return path_; }
  std::string PathOf(absl::string_view keyword) const;
  // About a keyword, or about the schema when it is empty.
  absl::Status Error(absl::string_view keyword, absl::string_view what) const;

  std::optional<simdjson::dom::element> Find(absl::string_view keyword) const;
  bool Has(absl::string_view keyword) const { return Find(keyword).has_value(); }
  bool HasAnyOf(const KeywordSet& keywords) const;
  // An error of the text `why` if something stands here that is neither an annotation nor in
  // `keywords`.
  absl::Status AllowOnly(const KeywordSet& keywords, absl::string_view why) const;

  // Counts such as minItems. Absent: `otherwise`.
  absl::StatusOr<int64_t> Count(absl::string_view keyword, int64_t otherwise) const;
  // A bound of a number, cut to just outside of what can be written. Absent: *bound stays.
  absl::Status Bound(absl::string_view keyword, std::optional<int64_t>* bound) const;
  // These require that the keyword is there.
  absl::StatusOr<absl::string_view> String(absl::string_view keyword) const;
  absl::StatusOr<simdjson::dom::array> Array(absl::string_view keyword) const;
  absl::StatusOr<std::vector<std::string>> Types() const;

 private:
  simdjson::dom::element element_;
  std::string path_;
  std::map<std::string, simdjson::dom::element> keywords_;
};

}  // namespace fixpoint
