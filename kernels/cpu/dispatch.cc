#include "kernels/cpu/dispatch.h"

#ifdef FIXPOINT_X86_LEVELS
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#ifdef FIXPOINT_ARM_LEVELS
#include <sys/auxv.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/cpu/levels.h"
#include "kernels/reference/reference_ops.h"

namespace fixpoint {
namespace {

#ifdef FIXPOINT_X86_LEVELS

struct CpuLeaf {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

CpuLeaf Leaf(uint32_t number) {
  CpuLeaf leaf;
  // Leaves zeros where the CPU has no such leaf.
  __get_cpuid_count(number, 0, &leaf.eax, &leaf.ebx, &leaf.ecx, &leaf.edx);
  return leaf;
}

bool Bit(uint32_t word, int bit) { return (word >> bit & 1) != 0; }

// XCR0: which register files the operating system saves. 0 if it cannot be asked.
uint64_t EnabledState() {
  constexpr int kOsxsave = 27;
  if (!Bit(Leaf(1).ecx, kOsxsave)) return 0;
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

bool StateEnabled(uint64_t mask) { return (EnabledState() & mask) == mask; }

constexpr uint64_t kAvxState = 0x6;       // XMM, YMM
constexpr uint64_t kAvx512State = 0xe6;   // and masks, ZMM
constexpr uint64_t kTileState = 0x60000;  // tile configuration and data

bool HasAvx2() { return StateEnabled(kAvxState) && Bit(Leaf(7).ebx, 5); }

bool HasVnni() {
  if (!HasAvx2() || !StateEnabled(kAvx512State)) return false;
  const CpuLeaf leaf = Leaf(7);
  constexpr int kF = 16, kDq = 17, kBw = 30, kVl = 31;  // in ebx
  constexpr int kVnni = 11;                             // in ecx
  return Bit(leaf.ebx, kF) && Bit(leaf.ebx, kDq) && Bit(leaf.ebx, kBw) && Bit(leaf.ebx, kVl) &&
         Bit(leaf.ecx, kVnni);
}

// Linux hands out the 8 KB of tile registers only on request, once for the whole process, before a
// thread touches them.
bool RequestTiles() {
  constexpr long kArchReqXcompPerm = 0x1023;
  constexpr long kTileDataFeature = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileDataFeature) == 0;
}

bool HasAmx() {
  if (!HasVnni() || !StateEnabled(kTileState)) return false;
  const CpuLeaf leaf = Leaf(7);
  constexpr int kVbmi = 1, kVbmi2 = 6;   // in ecx
  constexpr int kTile = 24, kInt8 = 25;  // in edx
  return Bit(leaf.ecx, kVbmi) && Bit(leaf.ecx, kVbmi2) && Bit(leaf.edx, kTile) &&
         Bit(leaf.edx, kInt8) && RequestTiles();
}

#endif  // FIXPOINT_X86_LEVELS

#ifdef FIXPOINT_ARM_LEVELS

// Numbers from the kernel's <asm/hwcap.h>, which old headers lack.
constexpr unsigned long kHwcapDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
constexpr unsigned long kHwcap2I8mm = 1ul << 13;       // HWCAP2_I8MM

bool HasNeonDotProduct() { return (getauxval(AT_HWCAP) & kHwcapDotProduct) != 0; }
bool HasI8mm() { return HasNeonDotProduct() && (getauxval(AT_HWCAP2) & kHwcap2I8mm) != 0; }

#endif  // FIXPOINT_ARM_LEVELS

bool Always() { return true; }

struct Level {
  const Ops& (*ops)();
  bool (*supported)();
};

// Slowest first.
constexpr Level kLevels[] = {
    {ReferenceOps, Always},       {PortableOps, Always},
#ifdef FIXPOINT_X86_LEVELS
    {Avx2Ops, HasAvx2},           {VnniOps, HasVnni},    {AmxOps, HasAmx},
#endif
#ifdef FIXPOINT_ARM_LEVELS
    {NeonOps, HasNeonDotProduct}, {I8mmOps, HasI8mm},
#endif
};

// Asks the CPU once.
const std::vector<const Ops*>& Supported() {
  static const auto* const supported = [] {
    auto* list = new std::vector<const Ops*>;
    for (const Level& level : kLevels) {
      if (level.supported()) list->push_back(&level.ops());
    }
    return list;
  }();
  return *supported;
}

}  // namespace

const Ops& BestOps() { return *Supported().back(); }

const Ops* FindOps(absl::string_view name) {
  for (const Ops* ops : Supported()) {
    if (name == ops->name) return ops;
  }
  return nullptr;
}

std::vector<absl::string_view> SupportedOps() {
  std::vector<absl::string_view> names;
  for (const Ops* ops : Supported()) names.push_back(ops->name);
  return names;
}

absl::StatusOr<const Ops*> SelectOps() {
  const char* name = std::getenv("FIXPOINT_ISA");
  if (name == nullptr || *name == '\0') return &BestOps();
  if (const Ops* ops = FindOps(name)) return ops;
  const std::string supported = absl::StrJoin(SupportedOps(), ", ");
  for (const Level& level : kLevels) {
    if (absl::string_view(name) == level.ops().name) {
      return absl::FailedPreconditionError(absl::StrCat(
          "FIXPOINT_ISA=", name, ": not supported by this CPU, which has ", supported));
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("FIXPOINT_ISA=", name, ": unknown kernel level, this CPU has ", supported));
}

}  // namespace fixpoint
