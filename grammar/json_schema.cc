#include "grammar/json_schema.h"

#include <simdjson.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/status_macros.h"
#include "grammar/json_rules.h"
#include "grammar/regex.h"
#include "grammar/schema_object.h"

namespace fixpoint {
namespace {

using Element = simdjson::dom::element;

// Above it a double no longer holds every whole number; excluded bounds must also differ from their
// neighbours with nine digits behind the point.
constexpr int64_t kMaxNumberBound = int64_t{1} << 53;
constexpr int64_t kMaxExcludedBound = 1000000;

class SchemaEmitter {
 public:
  SchemaEmitter(Element document, Nfa* nfa) : document_(document), nfa_(*nfa), rules_(nfa) {}

  absl::StatusOr<int32_t> EmitDocument() {
    const int32_t root = RuleOfPointer("");
    // Rules that references ask for, each once.
    while (!pending_.empty()) {
      const std::string pointer = std::move(pending_.back());
      pending_.pop_back();
      Element target;
      if (document_.at_pointer(pointer).get(target) != simdjson::SUCCESS) {
        return absl::InvalidArgumentError(absl::StrCat("$ref '#", pointer, "': no such place"));
      }
      RETURN_IF_ERROR(FillRule(by_pointer_[pointer], target, absl::StrCat("#", pointer), 0));
    }
    RETURN_IF_ERROR(nfa_.status());
    return root;
  }

 private:
  int32_t RuleOfPointer(const std::string& pointer) {
    const auto [entry, added] = by_pointer_.try_emplace(pointer, 0);
    if (added) {
      entry->second = nfa_.AddRule(absl::StrCat("#", pointer));
      pending_.push_back(pointer);
    }
    return entry->second;
  }

  absl::Status FillRule(int32_t rule, Element schema, const std::string& path, int depth) {
    RETURN_IF_ERROR(nfa_.status());
    const int32_t start = nfa_.rule(rule).start;
    ASSIGN_OR_RETURN(const int32_t end, Emit(schema, path, depth, start));
    nfa_.Silent(end, nfa_.rule(rule).end);
    return nfa_.status();
  }

  // A rule for the values of a schema: one that is there already where it says the same, so that
  // alternatives with equal parts stay one reading.
  absl::StatusOr<int32_t> RuleOf(Element element, const std::string& path, int depth) {
    RETURN_IF_ERROR(nfa_.status());
    std::string text = simdjson::minify(element);
    if (const auto found = by_text_.find(text); found != by_text_.end()) return found->second;
    ASSIGN_OR_RETURN(int32_t rule, SharedRule(element, path));
    if (rule < 0) {
      rule = nfa_.AddRule(path);
      RETURN_IF_ERROR(FillRule(rule, element, path, depth));
    }
    by_text_.emplace(std::move(text), rule);
    return rule;
  }

  // The rule that a schema of no more than a reference or a type is about, else -1.
  absl::StatusOr<int32_t> SharedRule(Element element, const std::string& path) {
    bool flag = false;
    if (element.get(flag) == simdjson::SUCCESS) return flag ? rules_.Value() : -1;
    SchemaObject schema(element, path);
    RETURN_IF_ERROR(schema.Open());
    if (schema.Has("$ref")) return RuleOfReference(schema);
    if (schema.AllowOnly({}, "").ok()) return rules_.Value();
    if (!schema.Has("type") || !schema.AllowOnly({"type"}, "").ok()) return -1;
    ASSIGN_OR_RETURN(const std::vector<std::string> types, schema.Types());
    if (types.size() > 1) return -1;
    if (types[0] == "string") return rules_.String();
    if (types[0] == "number") return rules_.Number();
    if (types[0] == "integer") return rules_.Integer();
    if (types[0] == "object") return rules_.AnyObject();
    return types[0] == "array" ? rules_.AnyArray() : -1;
  }

  // A value of the schema behind `from`; the state behind it.
  absl::StatusOr<int32_t> Emit(Element element, const std::string& path, int depth, int32_t from) {
    RETURN_IF_ERROR(nfa_.status());
    if (depth > kMaxSchemaDepth) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": schemas nest deeper than ", kMaxSchemaDepth));
    }
    bool flag = false;
    if (element.get(flag) == simdjson::SUCCESS) {
      return flag ? nfa_.CallThen(from, rules_.Value()) : nfa_.AddState();
    }
    SchemaObject schema(element, path);
    RETURN_IF_ERROR(schema.Open());
    if (schema.Has("$ref")) {
      ASSIGN_OR_RETURN(const int32_t rule, RuleOfReference(schema));
      return nfa_.CallThen(from, rule);
    }
    if (schema.Has("enum") || schema.Has("const")) return EmitEnumeration(schema, from);
    for (const char* keyword : {"anyOf", "oneOf", "allOf"}) {
      if (schema.Has(keyword)) return EmitAlternatives(schema, keyword, depth, from);
    }
    return EmitTypes(schema, depth, from);
  }

  absl::StatusOr<int32_t> RuleOfReference(const SchemaObject& schema) {
    RETURN_IF_ERROR(schema.AllowOnly({"$ref"}, "is not supported beside $ref"));
    ASSIGN_OR_RETURN(const absl::string_view reference, schema.String("$ref"));
    if (reference != "#" && !absl::StartsWith(reference, "#/")) {
      return schema.Error("$ref", "only places of this schema ('#/...') can be referred to");
    }
    // Percent signs are an URI's way to write what else would end it.
    std::string pointer;
    for (size_t i = 1; i < reference.size(); ++i) {
      if (reference[i] == '%' && i + 2 < reference.size() &&
          absl::ascii_isxdigit(static_cast<unsigned char>(reference[i + 1])) &&
          absl::ascii_isxdigit(static_cast<unsigned char>(reference[i + 2]))) {
        pointer.push_back(
            static_cast<char>(std::stoi(std::string(reference.substr(i + 1, 2)), nullptr, 16)));
        i += 2;
      } else {
        pointer.push_back(reference[i]);
      }
    }
    return RuleOfPointer(pointer);
  }

  static bool HasType(Element value, absl::string_view type) {
    const simdjson::dom::element_type is = value.type();
    const bool integer =
        is == simdjson::dom::element_type::INT64 || is == simdjson::dom::element_type::UINT64;
    if (type == "integer") return integer;
    if (type == "number") return integer || is == simdjson::dom::element_type::DOUBLE;
    if (type == "string") return is == simdjson::dom::element_type::STRING;
    if (type == "boolean") return is == simdjson::dom::element_type::BOOL;
    if (type == "null") return is == simdjson::dom::element_type::NULL_VALUE;
    if (type == "object") return is == simdjson::dom::element_type::OBJECT;
    return is == simdjson::dom::element_type::ARRAY;
  }

  absl::StatusOr<int32_t> EmitEnumeration(const SchemaObject& schema, int32_t from) {
    const absl::string_view keyword = schema.Has("enum") ? "enum" : "const";
    RETURN_IF_ERROR(
        schema.AllowOnly({keyword, "type"}, absl::StrCat("is not supported beside ", keyword)));
    std::vector<Element> values;
    if (keyword == "enum") {
      ASSIGN_OR_RETURN(const simdjson::dom::array array, schema.Array("enum"));
      values.assign(array.begin(), array.end());
    } else {
      values = {*schema.Find("const")};
    }
    std::vector<std::string> types;
    if (schema.Has("type")) {
      ASSIGN_OR_RETURN(types, schema.Types());
    }
    const int32_t to = nfa_.AddState();
    bool any = false;
    for (const Element value : values) {
      const bool fits = types.empty() ||
                        std::any_of(types.begin(), types.end(),
                                    [&](const std::string& type) { return HasType(value, type); });
      if (!fits) continue;
      any = true;
      nfa_.Silent(nfa_.Literal(from, simdjson::minify(value)), to);
    }
    if (!any) return schema.Error(keyword, "has no value that the schema allows");
    return to;
  }

  absl::StatusOr<int32_t> EmitAlternatives(const SchemaObject& schema, absl::string_view keyword,
                                           int depth, int32_t from) {
    RETURN_IF_ERROR(schema.AllowOnly({keyword}, absl::StrCat("is not supported beside ", keyword)));
    ASSIGN_OR_RETURN(const simdjson::dom::array array, schema.Array(keyword));
    if (array.size() == 0) return schema.Error(keyword, "must not be empty");
    if (keyword == "allOf" && array.size() > 1) {
      return schema.Error(keyword, "is supported with one schema only");
    }
    const int32_t to = nfa_.AddState();
    size_t index = 0;
    for (const Element element : array) {
      const int32_t start = nfa_.AddState();
      nfa_.Silent(from, start);
      ASSIGN_OR_RETURN(
          const int32_t end,
          Emit(element, absl::StrCat(schema.PathOf(keyword), "/", index++), depth + 1, start));
      nfa_.Silent(end, to);
    }
    return to;
  }

  absl::StatusOr<int32_t> EmitTypes(const SchemaObject& schema, int depth, int32_t from) {
    KeywordSet known = {"type", "uniqueItems"};
    for (const auto& [type, keywords] : KeywordsOfTypes()) {
      known.insert(keywords.begin(), keywords.end());
    }
    RETURN_IF_ERROR(schema.AllowOnly(known, "is not supported"));
    if (const auto unique = schema.Find("uniqueItems"); unique.has_value()) {
      bool on = true;
      if (unique->get(on) != simdjson::SUCCESS || on) {
        return schema.Error("uniqueItems", "is not supported unless false");
      }
    }
    std::vector<std::string> types;
    if (schema.Has("type")) {
      ASSIGN_OR_RETURN(types, schema.Types());
    } else {
      for (const char* type : {"object", "array", "string", "number"}) {
        if (schema.HasAnyOf(KeywordsOfTypes().at(type))) types.push_back(type);
      }
    }
    if (types.empty()) return nfa_.CallThen(from, rules_.Value());
    const int32_t to = nfa_.AddState();
    for (const std::string& type : types) {
      ASSIGN_OR_RETURN(const int32_t end, EmitType(schema, type, depth, from));
      nfa_.Silent(end, to);
    }
    return to;
  }

  absl::StatusOr<int32_t> EmitType(const SchemaObject& schema, const std::string& type, int depth,
                                   int32_t from) {
    if (type == "object") return EmitObject(schema, depth, from);
    if (type == "array") return EmitArray(schema, depth, from);
    if (type == "string") return EmitString(schema, from);
    if (type == "number" || type == "integer") return EmitNumber(schema, type, from);
    if (type == "null") return nfa_.Literal(from, "null");
    const int32_t to = nfa_.Literal(from, "true");
    nfa_.Silent(nfa_.Literal(from, "false"), to);
    return to;
  }

  absl::StatusOr<int32_t> EmitNumber(const SchemaObject& schema, const std::string& type,
                                     int32_t from) {
    const bool integer = type == "integer";
    if (!schema.HasAnyOf(KeywordsOfTypes().at("number"))) {
      return nfa_.CallThen(from, integer ? rules_.Integer() : rules_.Number());
    }
    std::optional<int64_t> min, max, above, below;
    RETURN_IF_ERROR(schema.Bound("minimum", &min));
    RETURN_IF_ERROR(schema.Bound("maximum", &max));
    RETURN_IF_ERROR(schema.Bound("exclusiveMinimum", &above));
    RETURN_IF_ERROR(schema.Bound("exclusiveMaximum", &below));
    if (integer) {
      if (above.has_value()) min = std::max(min.value_or(-kMaxInteger), *above + 1);
      if (below.has_value()) max = std::min(max.value_or(kMaxInteger), *below - 1);
      const int64_t low = std::max(min.value_or(-kMaxInteger), -kMaxInteger);
      const int64_t high = std::min(max.value_or(kMaxInteger), kMaxInteger);
      if (low > high) return schema.Error("", "no integer is inside the bounds");
      return rules_.IntegerBetween(from, low, high);
    }
    // A bound outside of what can be written says nothing.
    NumberBounds bounds;
    if (min.has_value()) bounds.min = std::max(*min, -kMaxInteger);
    if (max.has_value()) bounds.max = std::min(*max, kMaxInteger);
    if (above.has_value() && *above >= bounds.min) {
      bounds.min = *above;
      bounds.min_excluded = true;
    }
    if (below.has_value() && *below <= bounds.max) {
      bounds.max = *below;
      bounds.max_excluded = true;
    }
    RETURN_IF_ERROR(CheckNumberBounds(schema, bounds));
    return rules_.NumberBetween(from, bounds);
  }

  static absl::Status CheckNumberBounds(const SchemaObject& schema, const NumberBounds& bounds) {
    const auto check = [&](int64_t bound, bool excluded) {
      const int64_t limit = excluded ? kMaxExcludedBound : kMaxNumberBound;
      if (bound == kMaxInteger || bound == -kMaxInteger || (bound >= -limit && bound <= limit)) {
        return absl::OkStatus();
      }
      return schema.Error("", absl::StrCat("the bound ", bound, " of a number is larger than ",
                                           limit, " in magnitude"));
    };
    RETURN_IF_ERROR(check(bounds.min, bounds.min_excluded));
    RETURN_IF_ERROR(check(bounds.max, bounds.max_excluded));
    const bool excluded = bounds.min_excluded || bounds.max_excluded;
    if (bounds.min > bounds.max || (bounds.min == bounds.max && excluded)) {
      return schema.Error("", "no number is inside the bounds");
    }
    return absl::OkStatus();
  }

  absl::StatusOr<int32_t> EmitString(const SchemaObject& schema, int32_t from) {
    const bool lengths = schema.Has("minLength") || schema.Has("maxLength");
    const bool pattern = schema.Has("pattern"), format = schema.Has("format");
    if (lengths + pattern + format > 1) {
      return schema.Error("", "minLength and maxLength, pattern, format: only one is supported");
    }
    if (pattern) {
      ASSIGN_OR_RETURN(const absl::string_view text, schema.String("pattern"));
      return EmitPattern(schema, "pattern", text, RegexMatch::kSearch, from);
    }
    if (format) {
      ASSIGN_OR_RETURN(const absl::string_view text, schema.String("format"));
      const std::string known = PatternOfFormat(text);
      if (known.empty()) {
        return schema.Error("format", absl::StrCat("'", text, "' is not supported"));
      }
      return EmitPattern(schema, "format", known, RegexMatch::kWhole, from);
    }
    if (!lengths) return nfa_.CallThen(from, rules_.String());
    ASSIGN_OR_RETURN(const int64_t min, schema.Count("minLength", 0));
    ASSIGN_OR_RETURN(const int64_t max, schema.Count("maxLength", -1));
    if (max >= 0 && min > max) return schema.Error("minLength", "is larger than maxLength");
    const int32_t character = rules_.Character();
    const int32_t to = nfa_.AddState();
    int32_t at = nfa_.Literal(from, "\"");
    for (int64_t length = 0; !nfa_.full(); ++length) {
      if (length >= min) nfa_.Byte(at, '"', '"', to);
      if (max >= 0 && length == max) break;
      if (max < 0 && length == min) {
        nfa_.Call(at, character, at);
        break;
      }
      at = nfa_.CallThen(at, character);
    }
    if (nfa_.full()) return Annotate(nfa_.status(), schema.path());
    return to;
  }

  absl::StatusOr<int32_t> EmitPattern(const SchemaObject& schema, absl::string_view keyword,
                                      absl::string_view pattern, RegexMatch match, int32_t from) {
    auto regex = ParseRegex(pattern);
    if (!regex.ok()) return Annotate(regex.status(), schema.PathOf(keyword));
    const int32_t inside = nfa_.Literal(from, "\"");
    const int32_t end = EmitRegex(*regex, match, Spelling::kJsonString, inside, &nfa_);
    if (nfa_.full()) return Annotate(nfa_.status(), schema.PathOf(keyword));
    return nfa_.Literal(end, "\"");
  }

  // E[i], behind i items: E[0] -item-> E[1] -, item-> E[2] ...; ']' from min on.
  absl::StatusOr<int32_t> EmitArray(const SchemaObject& schema, int depth, int32_t from) {
    ASSIGN_OR_RETURN(const int64_t min, schema.Count("minItems", 0));
    ASSIGN_OR_RETURN(int64_t max, schema.Count("maxItems", -1));
    std::vector<int32_t> rules;  // of the first items
    if (schema.Has("prefixItems")) {
      ASSIGN_OR_RETURN(const simdjson::dom::array array, schema.Array("prefixItems"));
      for (const Element element : array) {
        const std::string path = absl::StrCat(schema.PathOf("prefixItems"), "/", rules.size());
        ASSIGN_OR_RETURN(rules.emplace_back(), RuleOf(element, path, depth + 1));
      }
    }
    const auto prefix = static_cast<int64_t>(rules.size());
    int32_t rest = -1;  // no more items
    bool flag = true;
    if (const auto items = schema.Find("items"); !items.has_value()) {
      if (!schema.Has("prefixItems")) rest = rules_.Value();
    } else if (items->get(flag) != simdjson::SUCCESS || flag) {
      ASSIGN_OR_RETURN(rest, RuleOf(*items, schema.PathOf("items"), depth + 1));
    }
    if (rest < 0 && (max < 0 || max > prefix)) max = prefix;
    if (max >= 0 && min > max) {
      return schema.Error("minItems", absl::StrCat("at most ", max, " items are possible"));
    }
    const int32_t to = nfa_.AddState();
    int32_t at = nfa_.Literal(from, "[");
    for (int64_t count = 0; !nfa_.full(); ++count) {
      if (count >= min) nfa_.Byte(at, ']', ']', to);
      if (max >= 0 && count == max) break;
      const int32_t item = count > 0 ? rules_.Separator(at, ',') : at;
      if (max < 0 && count >= std::max<int64_t>({min, prefix, 1})) {
        nfa_.Call(item, rest, at);
        break;
      }
      at = nfa_.CallThen(item, count < prefix ? rules[static_cast<size_t>(count)] : rest);
    }
    if (nfa_.full()) return Annotate(nfa_.status(), schema.path());
    return to;
  }

  struct Property {
    std::string name;
    std::optional<Element> schema;  // none: in `required` alone
    bool required = false;
  };

  static std::string PathOfProperty(const SchemaObject& schema, const std::string& name) {
    return absl::StrCat(schema.PathOf("properties"), "/",
                        absl::StrReplaceAll(name, {{"~", "~0"}, {"/", "~1"}}));
  }

  static absl::StatusOr<std::vector<Property>> ReadProperties(const SchemaObject& schema) {
    std::vector<Property> properties;
    std::map<std::string, size_t> by_name;
    if (const auto element = schema.Find("properties"); element.has_value()) {
      simdjson::dom::object object;
      if (element->get(object) != simdjson::SUCCESS) {
        return schema.Error("properties", "must be an object");
      }
      for (const auto field : object) {
        std::string name(field.key);
        if (!by_name.emplace(name, properties.size()).second) {
          return absl::InvalidArgumentError(
              absl::StrCat(PathOfProperty(schema, name), ": stands twice"));
        }
        properties.push_back({std::move(name), field.value, false});
      }
    }
    if (!schema.Has("required")) return properties;
    ASSIGN_OR_RETURN(const simdjson::dom::array required, schema.Array("required"));
    for (const Element element : required) {
      std::string_view name;
      if (element.get(name) != simdjson::SUCCESS) {
        return schema.Error("required", "must be a list of strings");
      }
      const auto [entry, added] = by_name.emplace(std::string(name), properties.size());
      if (added) properties.push_back({std::string(name), std::nullopt, false});
      properties[entry->second].required = true;
    }
    return properties;
  }

  // What members beside the listed ones may be: a rule, or -1 for none.
  absl::StatusOr<int32_t> ReadAdditional(const SchemaObject& schema, int depth) {
    const auto element = schema.Find("additionalProperties");
    if (!element.has_value()) return schema.Has("properties") ? -1 : rules_.Value();
    bool flag = false;
    if (element->get(flag) == simdjson::SUCCESS) return flag ? rules_.Value() : -1;
    return RuleOf(*element, schema.PathOf("additionalProperties"), depth + 1);
  }

  // Before property i with no member so far: bare[i], else listed[i]; name[i] in front of its name.
  //   bare[i] -> name[i];  listed[i] -, -> name[i];  name[i] -"name": value-> listed[i + 1]
  // and from bare[i] and listed[i] to those of i + 1 when i may be left out.
  absl::StatusOr<int32_t> EmitObject(const SchemaObject& schema, int depth, int32_t from) {
    ASSIGN_OR_RETURN(const std::vector<Property> properties, ReadProperties(schema));
    ASSIGN_OR_RETURN(const int32_t additional, ReadAdditional(schema, depth));
    if (additional >= 0 && properties.empty() && !schema.Has("additionalProperties")) {
      return nfa_.CallThen(from, rules_.AnyObject());
    }
    int32_t bare = nfa_.Literal(from, "{");
    int32_t listed = nfa_.AddState();
    for (const Property& property : properties) {
      RETURN_IF_ERROR(nfa_.status());
      const int32_t name = nfa_.AddState();
      if (bare >= 0) nfa_.Silent(bare, name);
      nfa_.Silent(rules_.Separator(listed, ','), name);
      int32_t value = nfa_.Literal(name, JsonQuoted(property.name));
      value = rules_.Separator(value, ':');
      if (property.schema.has_value()) {
        ASSIGN_OR_RETURN(
            value, Emit(*property.schema, PathOfProperty(schema, property.name), depth + 1, value));
      } else if (!schema.Has("additionalProperties")) {
        value = nfa_.CallThen(value, rules_.Value());
      } else if (additional >= 0) {
        value = nfa_.CallThen(value, additional);
      } else {
        return schema.Error("required", absl::StrCat("names '", property.name,
                                                     "', which additionalProperties forbids"));
      }
      const int32_t next = nfa_.AddState();
      nfa_.Silent(value, next);
      if (!property.required) nfa_.Silent(listed, next);
      if (property.required) bare = -1;
      listed = next;
    }
    if (additional >= 0) EmitAdditional(properties, additional, bare, listed);
    const int32_t to = nfa_.AddState();
    nfa_.Byte(listed, '}', '}', to);
    if (bare >= 0) nfa_.Byte(bare, '}', '}', to);
    return to;
  }

  void EmitAdditional(const std::vector<Property>& properties, int32_t rule, int32_t bare,
                      int32_t listed) {
    std::vector<std::string> names;
    for (const Property& property : properties) names.push_back(property.name);
    const int32_t name = nfa_.AddState();
    if (bare >= 0) nfa_.Silent(bare, name);
    nfa_.Silent(rules_.Separator(listed, ','), name);
    const int32_t value = rules_.Separator(rules_.OtherName(name, names), ':');
    nfa_.Call(value, rule, listed);
  }

  const Element document_;
  Nfa& nfa_;
  JsonRules rules_;
  std::map<std::string, int32_t> by_pointer_;  // rules of references
  std::map<std::string, int32_t> by_text_;     // of items and the like, by their schema
  std::vector<std::string> pending_;
};

}  // namespace

absl::StatusOr<int32_t> EmitJsonSchema(absl::string_view schema, Nfa* nfa) {
  if (schema.size() > kMaxGrammarBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the JSON schema has ", schema.size(),
                                                   " bytes, more than ", kMaxGrammarBytes));
  }
  simdjson::dom::parser parser;
  Element document;
  simdjson::error_code error = parser.allocate(kMaxGrammarBytes, kMaxJsonDepth);
  if (error == simdjson::SUCCESS) {
    error = parser.parse(schema.data(), schema.size()).get(document);
  }
  if (error != simdjson::SUCCESS) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the JSON schema cannot be read: ", simdjson::error_message(error),
        error == simdjson::DEPTH_ERROR ? absl::StrCat(" (deeper than ", kMaxJsonDepth, ")") : ""));
  }
  return SchemaEmitter(document, nfa).EmitDocument();
}

}  // namespace fixpoint
