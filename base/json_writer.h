// Writes JSON text piece by piece, without a tree in memory.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/strings/string_view.h"

namespace fixpoint {

// Compact JSON (no spaces) in a string. Calls must nest properly; a mistake (a value without a key,
// an unclosed object) is a CHECK failure. Strings become valid UTF-8: each byte that is not part of
// a well-formed sequence turns into U+FFFD.
//
//   JsonWriter json;
//   json.BeginObject();
//   json.Field("name", "x");
//   json.Key("ids"); json.BeginArray(); json.Int(1); json.EndArray();
//   json.EndObject();
//   std::string text = json.Take();
class JsonWriter {
 public:
  void BeginObject() { Open('{'); }
  void EndObject() { Close('{', '}'); }
  void BeginArray() { Open('['); }
  void EndArray() { Close('[', ']'); }
  void Key(absl::string_view key);

  void String(absl::string_view value);
  void Int(int64_t value);
  void Uint(uint64_t value);
  void Bool(bool value);
  void Null();
  // The shortest decimal text that reads back as the same double; NaN and infinities, which JSON
  // lacks, become null.
  void Double(double value);
  // A complete JSON value made elsewhere, copied as it is and not checked.
  void Raw(absl::string_view json);

  // Key and value in one call.
  template <typename T>
  void Field(absl::string_view key, const T& value) {
    Key(key);
    if constexpr (std::is_same_v<T, bool>) {
      Bool(value);
    } else if constexpr (std::is_floating_point_v<T>) {
      Double(value);
    } else if constexpr (std::is_integral_v<T>) {
      if constexpr (std::is_signed_v<T>)
        Int(value);
      else
        Uint(value);
    } else {
      String(value);
    }
  }

  // The finished text; the writer starts over.
  std::string Take();

 private:
  void Open(char bracket);
  void Close(char opened, char bracket);
  // Writes the comma that the place needs and checks that a value may stand here.
  void BeforeValue();

  std::string text_;
  std::vector<char> open_;  // '{' or '[' of each level
  bool first_ = true;       // nothing written yet on this level
  bool after_key_ = false;
  bool done_ = false;  // the outermost value is complete
};

// `text` as a JSON string with quotes, by the rules above.
std::string JsonQuote(absl::string_view text);

}  // namespace fixpoint
