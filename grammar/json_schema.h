// JSON Schema (2020-12 and the draft-07 spellings that mean the same) as a grammar. Every text of
// the grammar is a value of the schema; the grammar is smaller than the schema where noted.
//
//   true, {}                any value
//   type                    one or a list; without it, the keywords of one type imply that type
//   enum, const             as written, with no other condition but type
//   anyOf, oneOf, allOf     alternatives (oneOf is read as anyOf); allOf of one; alone
//   $ref                    '#' and '#/...' only, also to itself; alone
//   object                  properties in the order of the schema, required, additionalProperties:
//                           absent means false where properties are given, true otherwise; further
//                           members follow the listed ones. Names in `required` alone: any value
//   array                   items, prefixItems, minItems, maxItems; absent items means false where
//                           prefixItems are given
//   string                  minLength, maxLength (code points), or pattern, or format (date, time,
//                           date-time, uuid, ipv4, email, uri)
//   integer, number         minimum, maximum, exclusiveMinimum, exclusiveMaximum: whole bounds. A
//                           number with a bound is written without exponent
//   null, boolean
// Annotations (title, description, default, examples, $schema, $id, $comment, deprecated, readOnly,
// writeOnly, x-...) say nothing. Every other keyword is refused with its place. Objects and arrays
// nest up to kMaxNesting calls; white space and numbers are as in grammar/json_rules.h.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "grammar/nfa.h"

namespace fixpoint {

// Adds the rules and returns the one of the whole schema. Errors are INVALID_ARGUMENT and begin
// with the JSON pointer of what is wrong.
absl::StatusOr<int32_t> EmitJsonSchema(absl::string_view schema, Nfa* nfa);

}  // namespace fixpoint
