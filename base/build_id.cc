#include "base/build_id.h"

#include <elf.h>
#include <link.h>

#include <cstdint>
#include <cstring>

#include "absl/strings/escaping.h"
#include "absl/strings/string_view.h"

namespace fixpoint {
namespace {

size_t Padded(size_t bytes) { return (bytes + 3) / 4 * 4; }

// The first object that dl_iterate_phdr shows is the program itself.
int ReadProgram(dl_phdr_info* info, size_t, void* result) {
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = info->dlpi_phdr[i];
    if (segment.p_type != PT_NOTE) continue;
    const char* at = reinterpret_cast<const char*>(info->dlpi_addr + segment.p_vaddr);
    const char* end = at + segment.p_memsz;
    while (at + sizeof(ElfW(Nhdr)) <= end) {
      ElfW(Nhdr) note;
      std::memcpy(&note, at, sizeof(note));
      const char* name = at + sizeof(note);
      const char* content = name + Padded(note.n_namesz);
      at = content + Padded(note.n_descsz);
      if (at > end) break;
      const absl::string_view owner(name, note.n_namesz);
      if (note.n_type == NT_GNU_BUILD_ID && owner == absl::string_view("GNU", 4)) {
        *static_cast<std::string*>(result) =
            absl::BytesToHexString(absl::string_view(content, note.n_descsz));
        return 1;
      }
    }
  }
  return 1;
}

}  // namespace

std::string BuildId() {
  std::string id;
  dl_iterate_phdr(ReadProgram, &id);
  return id;
}

}  // namespace fixpoint
