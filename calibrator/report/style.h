// The style sheet of the report: light and dark, narrow and wide, paper.
#pragma once

namespace fixpoint {

extern const char kReportStyle[];

}  // namespace fixpoint
