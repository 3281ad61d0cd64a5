// Parts of an HTML page: text made safe, figures written for people, tables.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace fixpoint {

// Any bytes as HTML text that is also safe between double quotes of an attribute. Invalid UTF-8,
// noncharacters and controls of the direction of writing become U+FFFD, control characters but \n
// and \t their pictures (U+2400 and on).
std::string EscapeHtml(absl::string_view bytes);

// The end of a piece of at most `max_bytes` that does not cut a code point of valid UTF-8.
size_t CutLength(absl::string_view bytes, size_t max_bytes);

// EscapeHtml of at most max_bytes; what is missing is said: "...(2,000 bytes more)".
std::string EscapeCut(absl::string_view bytes, size_t max_bytes);

// Figures. What is not finite is a dash. A true minus sign and no-break spaces.
std::string FormatSignificant(double value, int digits);   // 0.00980, 1.2e-7, 1234567
std::string FormatFixed(double value, int decimals);       // 12.34
std::string FormatSigned(double value, int decimals);      // +0.62
std::string FormatPercent(double share, int decimals);     // 0.941 -> 94.1 %
std::string FormatShare(double share);                     // 0, 3.1 ppm, 0.02 %, 12 %
std::string FormatCount(int64_t value);                    // 307,200
std::string FormatSeconds(double seconds);                 // 0.4 s, 42 s, 12 min 05 s, 1 h 02 min
std::string FormatScaled(double value, const char* unit);  // 1.53 T + unit; decimal prefixes
std::string FormatBytes(double bytes);                     // 3.42 GiB
inline constexpr char kDash[] = "\u2013";

// A table in a box of its own that scrolls.
class HtmlTable {
 public:
  struct Column {
    std::string title;  // HTML
    bool number = false;
  };
  // `label`: what the table is, for those who do not see it. `tall`: limited in height, with a head
  // that stays.
  HtmlTable(absl::string_view label, std::vector<Column> columns, bool tall = false);
  // `cells`: HTML, as many as columns; the first names the row. `css_class` may be empty.
  void Row(const std::vector<std::string>& cells, absl::string_view css_class = "");
  // A last line below all columns, such as what was left out.
  void Note(absl::string_view text);
  std::string Take();

 private:
  std::vector<Column> columns_;
  std::string html_;
};

}  // namespace fixpoint
