#include "calibrator/report/html.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "text/utf8.h"

namespace fixpoint {
namespace {

constexpr char kNoBreakSpace[] = "\u00a0";
constexpr uint32_t kControlPictures = 0x2400;
constexpr uint32_t kDeletePicture = 0x2421;

bool IsNoncharacter(uint32_t c) { return (c & 0xFFFE) == 0xFFFE || (c >= 0xFDD0 && c <= 0xFDEF); }

// Overrides and isolates turn the text behind them around, past the end of their own place.
bool IsDirectionControl(uint32_t c) {
  return (c >= 0x202A && c <= 0x202E) || (c >= 0x2066 && c <= 0x2069);
}

void AppendEscaped(uint32_t c, std::string* out) {
  switch (c) {
    case '&':
      out->append("&amp;");
      return;
    case '<':
      out->append("&lt;");
      return;
    case '>':
      out->append("&gt;");
      return;
    case '"':
      out->append("&quot;");
      return;
    case '\'':
      out->append("&#39;");
      return;
    case '\n':
    case '\t':
      out->push_back(static_cast<char>(c));
      return;
  }
  if (c < 0x20) {
    c += kControlPictures;
  } else if (c == 0x7F) {
    c = kDeletePicture;
  } else if ((c > 0x7F && c < 0xA0) || IsNoncharacter(c) || IsDirectionControl(c)) {
    c = kReplacementCharacter;
  }
  AppendUtf8(c, out);
}

// A true minus sign.
std::string WithMinus(std::string figure) {
  if (!figure.empty() && figure[0] == '-') figure.replace(0, 1, "\u2212");
  return figure;
}

// -0.00 is no figure for people.
double WithoutNegativeZero(double value, int decimals) {
  return std::abs(value) < 0.5 * std::pow(10.0, -decimals) ? 0.0 : value;
}

}  // namespace

std::string EscapeHtml(absl::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() + bytes.size() / 8);
  while (!bytes.empty()) {
    const Utf8Front front = ClassifyUtf8(bytes);
    const uint32_t c = front.kind == Utf8Prefix::kValid
                           ? ReadCodePoint(bytes.substr(0, front.length), 0).value
                           : kReplacementCharacter;
    AppendEscaped(c, &out);
    bytes.remove_prefix(front.length);
  }
  return out;
}

size_t CutLength(absl::string_view bytes, size_t max_bytes) {
  if (bytes.size() <= max_bytes) return bytes.size();
  // A code point has at most three continuation bytes.
  size_t end = max_bytes;
  for (int i = 0; i < 3 && end > 0 && (bytes[end] & 0xC0) == 0x80; ++i) --end;
  return (bytes[end] & 0xC0) == 0x80 ? max_bytes : end;
}

std::string EscapeCut(absl::string_view bytes, size_t max_bytes) {
  const size_t end = CutLength(bytes, max_bytes);
  std::string html = EscapeHtml(bytes.substr(0, end));
  if (end < bytes.size()) {
    absl::StrAppend(&html, "<span class=\"cut\">\u2026 (",
                    FormatCount(static_cast<int64_t>(bytes.size() - end)), " bytes more)</span>");
  }
  return html;
}

std::string FormatSignificant(double value, int digits) {
  if (!std::isfinite(value)) return kDash;
  if (value == 0) return "0";
  if (std::abs(value) >= std::pow(10.0, digits) - 0.5 && std::abs(value) < 1e7) {
    return WithMinus(absl::StrFormat("%.0f", value));
  }
  std::string figure = absl::StrFormat("%#.*g", digits, value);
  if (figure.back() == '.') figure.pop_back();
  // e-05 -> e-5
  const size_t exponent = figure.find('e');
  if (exponent != std::string::npos && figure[exponent + 2] == '0') figure.erase(exponent + 2, 1);
  return WithMinus(figure);
}

std::string FormatFixed(double value, int decimals) {
  if (!std::isfinite(value)) return kDash;
  // Beyond this, decimals say nothing and the digits would fill the page.
  if (std::abs(value) >= 1e9) return FormatSignificant(value, 4);
  return WithMinus(absl::StrFormat("%.*f", decimals, WithoutNegativeZero(value, decimals)));
}

std::string FormatSigned(double value, int decimals) {
  if (!std::isfinite(value)) return kDash;
  return absl::StrCat(WithoutNegativeZero(value, decimals) > 0 ? "+" : "",
                      FormatFixed(value, decimals));
}

std::string FormatPercent(double share, int decimals) {
  if (!std::isfinite(share)) return kDash;
  return absl::StrCat(FormatFixed(share * 100, decimals), kNoBreakSpace, "%");
}

std::string FormatShare(double share) {
  if (!std::isfinite(share)) return kDash;
  if (share == 0) return "0";
  if (share < 1e-4) return absl::StrCat(FormatSignificant(share * 1e6, 2), kNoBreakSpace, "ppm");
  return absl::StrCat(FormatSignificant(share * 100, 2), kNoBreakSpace, "%");
}

std::string FormatCount(int64_t value) {
  std::string digits = absl::StrCat(value);
  const ptrdiff_t first = value < 0 ? 1 : 0;
  for (ptrdiff_t i = static_cast<ptrdiff_t>(digits.size()) - 3; i > first; i -= 3) {
    digits.insert(i, ",");
  }
  return WithMinus(digits);
}

std::string FormatSeconds(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0 || seconds > 1e9) return kDash;
  if (seconds < 9.95) return absl::StrCat(FormatFixed(seconds, 1), kNoBreakSpace, "s");
  const int64_t whole = std::llround(seconds);
  if (whole < 60) return absl::StrCat(whole, kNoBreakSpace, "s");
  if (whole < 3600) {
    return absl::StrFormat("%d%smin %02d%ss", whole / 60, kNoBreakSpace, whole % 60, kNoBreakSpace);
  }
  return absl::StrFormat("%s%sh %02d%smin", FormatCount(whole / 3600), kNoBreakSpace,
                         whole % 3600 / 60, kNoBreakSpace);
}

std::string FormatScaled(double value, const char* unit) {
  if (!std::isfinite(value)) return kDash;
  static constexpr const char* kPrefixes[] = {"", "k", "M", "G", "T", "P"};
  size_t prefix = 0;
  while (std::abs(value) >= 999.5 && prefix + 1 < std::size(kPrefixes)) {
    value /= 1000;
    ++prefix;
  }
  return absl::StrCat(FormatSignificant(value, 3), kNoBreakSpace, kPrefixes[prefix], unit);
}

std::string FormatBytes(double bytes) {
  if (!std::isfinite(bytes) || bytes < 0) return kDash;
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes >= 999.5 && unit + 1 < std::size(kUnits)) {
    bytes /= 1024;
    ++unit;
  }
  return absl::StrCat(FormatSignificant(bytes, 3), kNoBreakSpace, kUnits[unit]);
}

HtmlTable::HtmlTable(absl::string_view label, std::vector<Column> columns, bool tall)
    : columns_(std::move(columns)) {
  // A box that scrolls must be reachable by the keyboard.
  absl::StrAppend(&html_, "<div class=\"scroll", tall ? " tall" : "",
                  "\" tabindex=\"0\" role=\"region\" aria-label=\"", EscapeHtml(label),
                  "\">\n<table>\n<thead><tr>");
  for (const Column& column : columns_) {
    absl::StrAppend(&html_, "<th scope=\"col\"", column.number ? " class=\"num\"" : "", ">",
                    column.title, "</th>");
  }
  absl::StrAppend(&html_, "</tr></thead>\n<tbody>\n");
}

void HtmlTable::Row(const std::vector<std::string>& cells, absl::string_view css_class) {
  CHECK_EQ(cells.size(), columns_.size());
  absl::StrAppend(&html_, "<tr");
  if (!css_class.empty()) absl::StrAppend(&html_, " class=\"", css_class, "\"");
  absl::StrAppend(&html_, ">");
  for (size_t i = 0; i < cells.size(); ++i) {
    const char* element = i == 0 ? "th" : "td";
    absl::StrAppend(&html_, "<", element, i == 0 ? " scope=\"row\"" : "",
                    columns_[i].number ? " class=\"num\"" : "", ">", cells[i], "</", element, ">");
  }
  absl::StrAppend(&html_, "</tr>\n");
}

void HtmlTable::Note(absl::string_view text) {
  absl::StrAppend(&html_, "<tr class=\"rest\"><td colspan=\"", columns_.size(), "\">",
                  EscapeHtml(text), "</td></tr>\n");
}

std::string HtmlTable::Take() {
  absl::StrAppend(&html_, "</tbody>\n</table>\n</div>\n");
  return std::move(html_);
}

}  // namespace fixpoint
