#include "text/template/format.h"

#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "base/status_macros.h"
#include "text/utf8.h"

namespace fixpoint {
namespace {

absl::Status NotText(const Value& value, absl::string_view as) {
  return absl::InvalidArgumentError(
      absl::StrCat("a value of kind ", value.KindName(), " cannot be written as ", as));
}

bool IsPrintable(uint32_t code_point) {
  if (code_point == ' ') return true;
  const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(code_point));
  return category != UTF8PROC_CATEGORY_CN &&
         category < UTF8PROC_CATEGORY_ZS;  // Zs, Zl, Zp, Cc, Cf, Cs, Co follow
}

void AppendRepr(absl::string_view text, std::string* out) {
  const bool apostrophe = text.find('\'') != absl::string_view::npos;
  const char quote = apostrophe && text.find('"') == absl::string_view::npos ? '"' : '\'';
  out->push_back(quote);
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = ReadCodePoint(text, i);
    if (c.value == static_cast<uint8_t>(quote) || c.value == '\\') {
      absl::StrAppend(out, "\\", text.substr(i, 1));
    } else if (c.value == '\n') {
      absl::StrAppend(out, "\\n");
    } else if (c.value == '\r') {
      absl::StrAppend(out, "\\r");
    } else if (c.value == '\t') {
      absl::StrAppend(out, "\\t");
    } else if (IsPrintable(c.value)) {
      absl::StrAppend(out, text.substr(i, c.length));
    } else if (c.value < 0x100) {
      absl::StrAppendFormat(out, "\\x%02x", c.value);
    } else if (c.value < 0x10000) {
      absl::StrAppendFormat(out, "\\u%04x", c.value);
    } else {
      absl::StrAppendFormat(out, "\\U%08x", c.value);
    }
    i += c.length;
  }
  out->push_back(quote);
}

absl::Status AppendPython(const Value& value, Budget* budget, std::string* out) {
  RETURN_IF_ERROR(budget->Charge(1));
  if (const MarkedString* text = value.as_string()) {
    RETURN_IF_ERROR(budget->ChargeBytes(text->size()));
    AppendRepr(text->text(), out);
  } else if (const ListValue* list = value.as_list()) {
    absl::string_view separator;
    out->push_back(list->tuple ? '(' : '[');
    for (const Value& item : list->items) {
      absl::StrAppend(out, std::exchange(separator, ", "));
      RETURN_IF_ERROR(AppendPython(item, budget, out));
    }
    if (list->tuple && list->items.size() == 1) out->push_back(',');
    out->push_back(list->tuple ? ')' : ']');
  } else if (const DictValue* dict = value.as_dict()) {
    absl::string_view separator;
    out->push_back('{');
    for (const auto& [key, item] : dict->entries()) {
      absl::StrAppend(out, std::exchange(separator, ", "));
      AppendRepr(key, out);
      absl::StrAppend(out, ": ");
      RETURN_IF_ERROR(AppendPython(item, budget, out));
    }
    out->push_back('}');
  } else if (value.is_undefined()) {
    absl::StrAppend(out, "Undefined");
  } else {
    ASSIGN_OR_RETURN(const MarkedString text, ToText(value, budget));
    absl::StrAppend(out, text.text());
  }
  return absl::OkStatus();
}

void AppendJsonString(absl::string_view text, bool ensure_ascii, std::string* out) {
  out->push_back('"');
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = ReadCodePoint(text, i);
    static constexpr absl::string_view kSpecial = "\"\\\n\r\t\f\b";
    static constexpr absl::string_view kLetters = "\"\\nrtfb";
    const size_t special =
        c.value < 0x80 ? kSpecial.find(static_cast<char>(c.value)) : absl::string_view::npos;
    if (special != absl::string_view::npos) {
      absl::StrAppend(out, "\\", kLetters.substr(special, 1));
    } else if (c.value < 0x20 || (ensure_ascii && c.value >= 0x7F + 1 && c.value < 0x10000)) {
      absl::StrAppendFormat(out, "\\u%04x", c.value);
    } else if (ensure_ascii && c.value >= 0x10000) {
      absl::StrAppendFormat(out, "\\u%04x\\u%04x", 0xD800 + ((c.value - 0x10000) >> 10),
                            0xDC00 + (c.value & 0x3FF));
    } else {
      absl::StrAppend(out, text.substr(i, c.length));
    }
    i += c.length;
  }
  out->push_back('"');
}

class JsonWriter {
 public:
  JsonWriter(const JsonOptions& options, Budget* budget) : options_(options), budget_(*budget) {}

  absl::Status Write(const Value& value, int level) {
    RETURN_IF_ERROR(budget_.Charge(1));
    if (value.is_none()) {
      out_ += "null";
    } else if (const bool* flag = value.as_bool()) {
      out_ += *flag ? "true" : "false";
    } else if (const int64_t* number = value.as_int()) {
      absl::StrAppend(&out_, *number);
    } else if (const std::string* number = value.as_number_text()) {
      out_ += *number;
    } else if (const MarkedString* text = value.as_string()) {
      RETURN_IF_ERROR(budget_.ChargeBytes(text->size()));
      AppendJsonString(text->text(), options_.ensure_ascii, &out_);
    } else if (const ListValue* list = value.as_list()) {
      RETURN_IF_ERROR(WriteList(*list, level));
    } else if (const DictValue* dict = value.as_dict()) {
      RETURN_IF_ERROR(WriteDict(*dict, level));
    } else {
      return NotText(value, "JSON");
    }
    return absl::OkStatus();
  }
  std::string Take() { return std::move(out_); }

 private:
  absl::Status WriteList(const ListValue& list, int level) {
    out_ += "[";
    bool first = true;
    for (const Value& item : list.items) {
      RETURN_IF_ERROR(StartItem(std::exchange(first, false), level + 1));
      RETURN_IF_ERROR(Write(item, level + 1));
    }
    if (!first) RETURN_IF_ERROR(NewLine(level));
    out_ += "]";
    return absl::OkStatus();
  }

  absl::Status WriteDict(const DictValue& dict, int level) {
    std::vector<const std::pair<std::string, Value>*> entries;
    for (const auto& entry : dict.entries()) entries.push_back(&entry);
    if (options_.sort_keys) {  // byte order of UTF-8 is code point order
      std::sort(entries.begin(), entries.end(),
                [](const auto* a, const auto* b) { return a->first < b->first; });
    }
    out_ += "{";
    bool first = true;
    for (const auto* entry : entries) {
      RETURN_IF_ERROR(StartItem(std::exchange(first, false), level + 1));
      RETURN_IF_ERROR(budget_.ChargeBytes(entry->first.size()));
      AppendJsonString(entry->first, options_.ensure_ascii, &out_);
      out_ += options_.key_separator;
      RETURN_IF_ERROR(Write(entry->second, level + 1));
    }
    if (!first) RETURN_IF_ERROR(NewLine(level));
    out_ += "}";
    return absl::OkStatus();
  }

  absl::Status StartItem(bool first, int level) {
    if (!first) out_ += options_.item_separator;
    RETURN_IF_ERROR(
        budget_.ChargeBytes(options_.item_separator.size() + options_.key_separator.size()));
    return NewLine(level);
  }

  absl::Status NewLine(int level) {
    if (options_.indent < 0) return absl::OkStatus();
    const size_t width = static_cast<size_t>(options_.indent) * level;
    RETURN_IF_ERROR(budget_.ChargeBytes(width));
    out_ += '\n';
    out_.append(width, ' ');
    return absl::OkStatus();
  }

  const JsonOptions& options_;
  Budget& budget_;
  std::string out_;
};

}  // namespace

absl::StatusOr<MarkedString> ToText(const Value& value, Budget* budget) {
  if (const MarkedString* text = value.as_string()) {
    RETURN_IF_ERROR(budget->ChargeBytes(text->size()));
    return *text;
  }
  if (value.is_undefined()) return MarkedString();
  if (value.is_none()) return MarkedString("None", false);
  if (const bool* flag = value.as_bool()) return MarkedString(*flag ? "True" : "False", false);
  if (const int64_t* number = value.as_int()) return MarkedString(absl::StrCat(*number), false);
  if (const std::string* number = value.as_number_text()) return MarkedString(*number, false);
  if (value.as_list() || value.as_dict()) {
    std::string out;
    RETURN_IF_ERROR(AppendPython(value, budget, &out));
    return MarkedString(std::move(out), false);
  }
  return NotText(value, "text");
}

absl::StatusOr<std::string> ToJson(const Value& value, const JsonOptions& options, Budget* budget) {
  JsonWriter writer(options, budget);
  RETURN_IF_ERROR(writer.Write(value, 0));
  return writer.Take();
}

std::string PythonFloat(double value) {
  char buffer[32];
  const auto end =
      std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific);
  const std::string scientific(buffer, end.ptr);
  const size_t e = scientific.find('e');
  const int exponent = std::atoi(scientific.c_str() + e + 1);
  if (exponent < -4 || exponent >= 16) return scientific;
  const bool negative = scientific[0] == '-';
  std::string digits;
  for (const char c : scientific.substr(0, e)) {
    if (c >= '0' && c <= '9') digits.push_back(c);
  }
  if (exponent < 0) digits.insert(0, static_cast<size_t>(-exponent), '0');
  const size_t point = exponent < 0 ? 1 : static_cast<size_t>(exponent) + 1;
  if (digits.size() <= point) digits.append(point + 1 - digits.size(), '0');
  digits.insert(point, 1, '.');
  return negative ? absl::StrCat("-", digits) : digits;
}

}  // namespace fixpoint
