// Invariants: CHECK(x), CHECK_EQ(a, b) and so on print file, line, both values and the streamed
// text, then abort. They stay on in release builds. For what a user or a file can get wrong use
// absl::Status instead.
#pragma once

#include <cstdlib>
#include <iostream>
#include <sstream>

namespace fixpoint::internal {

class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition) {
    text_ << file << ":" << line << ": CHECK failed: " << condition << " ";
  }
  [[noreturn]] ~CheckFailure() {
    std::cerr << text_.str() << std::endl;
    std::abort();
  }
  std::ostream& stream() { return text_; }

 private:
  std::ostringstream text_;
};

}  // namespace fixpoint::internal

#define CHECK(condition)      \
  if (condition) [[likely]] { \
  } else                      \
    ::fixpoint::internal::CheckFailure(__FILE_NAME__, __LINE__, #condition).stream()
#define FIXPOINT_CHECK_OP(a, op, b)                                                             \
  if (const auto& check_pair = std::make_pair((a), (b)); check_pair.first op check_pair.second) \
      [[likely]] {                                                                              \
  } else                                                                                        \
    ::fixpoint::internal::CheckFailure(__FILE_NAME__, __LINE__, #a " " #op " " #b).stream()     \
        << "(" << check_pair.first << " against " << check_pair.second << ") "
#define CHECK_EQ(a, b) FIXPOINT_CHECK_OP(a, ==, b)
#define CHECK_NE(a, b) FIXPOINT_CHECK_OP(a, !=, b)
#define CHECK_LE(a, b) FIXPOINT_CHECK_OP(a, <=, b)
#define CHECK_LT(a, b) FIXPOINT_CHECK_OP(a, <, b)
#define CHECK_GE(a, b) FIXPOINT_CHECK_OP(a, >=, b)
#define CHECK_GT(a, b) FIXPOINT_CHECK_OP(a, >, b)
