// The release's version, set by the project() line of the top CMakeLists.txt.
#pragma once

namespace fixpoint {

inline constexpr char kServerVersion[] = FIXPOINT_VERSION;

}  // namespace fixpoint
