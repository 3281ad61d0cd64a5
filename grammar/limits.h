// What one grammar may cost. Everything that a caller's text can make larger is counted against one
// of these while it is built, so a refusal comes as quickly as a success and names limit and value.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fixpoint {

inline constexpr size_t kMaxGrammarBytes = 64 << 10;  // text of a schema or regular expression
inline constexpr int kMaxSchemaDepth = 32;            // schemas inside schemas, without references
inline constexpr int kMaxJsonDepth = 64;              // of the schema as a JSON text
inline constexpr int kMaxGroupDepth = 32;             // parentheses of a regular expression
inline constexpr int32_t kMaxRules = 4096;
inline constexpr int32_t kMaxNfaStates = 100000;
inline constexpr int32_t kMaxNfaEdges = 300000;
inline constexpr int32_t kMaxDfaStates = 40000;
inline constexpr size_t kMaxDfaTableBytes = 8 << 20;
// Steps of the subset construction: NFA states and edges looked at.
inline constexpr int64_t kMaxCompileWork = 5000000;
// Rules that a state can enter without reading a byte, counted by the ways to get there.
inline constexpr int32_t kMaxEntries = 256;

// While generating: how deep rules nest (objects and arrays inside each other), how many readings
// of the text so far are followed at once.
inline constexpr int32_t kMaxNesting = 64;
inline constexpr int32_t kMaxReadings = 256;

}  // namespace fixpoint
