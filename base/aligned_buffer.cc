#include "base/aligned_buffer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

namespace fixpoint {

void AlignedBuffer::AdviseHugePages() {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(data_);
  const uintptr_t first = (begin + page - 1) / page * page;
  const uintptr_t end = (begin + size_bytes_) / page * page;
  // Only advice: a kernel built without huge pages answers EINVAL, and the memory serves as it is.
  if (first < end) ::madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
}

}  // namespace fixpoint
