#include "grammar/automaton.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace fixpoint {
namespace {

constexpr int32_t kUnreached = kMaxNesting + 1;
constexpr int32_t kNoState = -1;
constexpr int32_t kWanted = -2;  // a rule that is called and not built yet

size_t At(int32_t index) { return static_cast<size_t>(index); }

}  // namespace

// The subset construction, rule by rule as they are called from the root, then what can be finished
// and how rules enter each other.
class AutomatonBuilder {
 public:
  AutomatonBuilder(const Nfa& nfa, const ByteSet& available)
      : nfa_(nfa),
        available_(available),
        start_of_rule_(nfa.rules().size(), kNoState),
        seen_(nfa.states().size(), 0) {}

  absl::StatusOr<Automaton> Build(int32_t root) {
    RETURN_IF_ERROR(nfa_.status());
    MakeClasses();
    Want(root);
    for (size_t next = 0; next < wanted_.size(); ++next) {
      RETURN_IF_ERROR(BuildRule(wanted_[next]));
    }
    a_.start_ = start_of_rule_[At(root)];
    for (std::vector<Automaton::CallEdge>& calls : a_.calls_) {
      for (Automaton::CallEdge& call : calls) call.start = start_of_rule_[At(call.rule)];
    }
    ComputeNeed();
    if (a_.Need(a_.start_) >= kUnreached) {
      return absl::InvalidArgumentError(absl::StrCat(
          "no text of at most ", kMaxNesting,
          " nested objects and arrays can match: the conditions contradict each other, or a "
          "required part contains itself"));
    }
    Prune();
    RETURN_IF_ERROR(CheckEntries());
    return std::move(a_);
  }

 private:
  using Subset = std::vector<int32_t>;  // rising NFA states that read, call or end

  void MakeClasses() {
    std::bitset<257> border;
    for (const NfaState& state : nfa_.states()) {
      for (const NfaByteEdge& edge : state.bytes) {
        border.set(edge.low);
        border.set(size_t{edge.high} + 1);
      }
    }
    int32_t byte_class = 0;
    for (size_t byte = 0; byte < 256; ++byte) {
      if (byte > 0 && (border[byte] || available_[byte] != available_[byte - 1])) ++byte_class;
      a_.class_of_[byte] = static_cast<uint8_t>(byte_class);
      if (available_[byte]) class_available_.set(At(byte_class));
    }
    a_.num_classes_ = byte_class + 1;
    targets_.resize(At(a_.num_classes_));
  }

  void Want(int32_t rule) {
    if (start_of_rule_[At(rule)] != kNoState) return;
    start_of_rule_[At(rule)] = kWanted;
    wanted_.push_back(rule);
  }

  absl::Status BuildRule(int32_t rule) {
    rule_end_ = nfa_.rule(rule).end;
    known_.clear();
    pending_.clear();
    const Subset first = Close({nfa_.rule(rule).start});
    ASSIGN_OR_RETURN(start_of_rule_[At(rule)], StateOf(first));
    while (!pending_.empty()) {
      const auto [state, subset] = std::move(pending_.back());
      pending_.pop_back();
      RETURN_IF_ERROR(Expand(state, subset));
    }
    return absl::OkStatus();
  }

  // What is reached without reading, of the states that matter.
  Subset Close(const Subset& from) {
    ++stamp_;
    Subset result;
    stack_.assign(from.begin(), from.end());
    while (!stack_.empty()) {
      const int32_t index = stack_.back();
      stack_.pop_back();
      ++work_;
      if (std::exchange(seen_[At(index)], stamp_) == stamp_) continue;
      const NfaState& state = nfa_.states()[At(index)];
      if (index == rule_end_ || !state.bytes.empty() || !state.calls.empty()) {
        result.push_back(index);
      }
      stack_.insert(stack_.end(), state.silent.begin(), state.silent.end());
    }
    std::sort(result.begin(), result.end());
    work_ += static_cast<int64_t>(result.size());
    return result;
  }

  absl::StatusOr<int32_t> StateOf(const Subset& subset) {
    const auto known = known_.find(subset);
    if (known != known_.end()) return known->second;
    const int32_t state = a_.num_states();
    if (state >= kMaxDfaStates) {
      return absl::InvalidArgumentError(
          absl::StrCat("the grammar needs more than ", kMaxDfaStates,
                       " deterministic states: too large lengths, repetitions or alternatives"));
    }
    const size_t classes = At(a_.num_classes_);
    if ((a_.table_.size() + classes) * sizeof(int32_t) > kMaxDfaTableBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("the grammar's table needs more than ", kMaxDfaTableBytes, " bytes"));
    }
    a_.table_.resize(a_.table_.size() + classes, Automaton::kNone);
    a_.calls_.emplace_back();
    a_.accepting_.push_back(std::binary_search(subset.begin(), subset.end(), rule_end_));
    known_.emplace(subset, state);
    pending_.emplace_back(state, subset);
    return state;
  }

  absl::Status Expand(int32_t state, const Subset& subset) {
    for (Subset& target : targets_) target.clear();
    std::map<int32_t, Subset> calls;
    for (const int32_t index : subset) {
      RETURN_IF_ERROR(CheckWork());
      const NfaState& nfa_state = nfa_.states()[At(index)];
      for (const NfaByteEdge& edge : nfa_state.bytes) {
        const int32_t last = a_.ClassOf(edge.high);
        for (int32_t c = a_.ClassOf(edge.low); c <= last; ++c) {
          if (class_available_[At(c)]) targets_[At(c)].push_back(edge.to);
          ++work_;
        }
      }
      for (const NfaCallEdge& call : nfa_state.calls) calls[call.rule].push_back(call.to);
      work_ += 1 + static_cast<int64_t>(nfa_state.calls.size());
    }
    const Subset* previous = nullptr;
    int32_t previous_state = kNoState;
    for (int32_t c = 0; c < a_.num_classes_; ++c) {
      Subset& target = targets_[At(c)];
      if (target.empty()) continue;
      if (previous == nullptr || *previous != target) {
        RETURN_IF_ERROR(CheckWork());
        ASSIGN_OR_RETURN(previous_state, StateOf(Close(target)));
        previous = &target;
      }
      a_.table_[At(state) * At(a_.num_classes_) + At(c)] = previous_state;
    }
    call_edges_ += static_cast<int32_t>(calls.size());
    if (call_edges_ > kMaxNfaEdges) {
      return absl::InvalidArgumentError(
          absl::StrCat("the grammar needs more than ", kMaxNfaEdges, " calls between its rules"));
    }
    for (const auto& [rule, target] : calls) {
      RETURN_IF_ERROR(CheckWork());
      ASSIGN_OR_RETURN(const int32_t to, StateOf(Close(target)));
      a_.calls_[At(state)].push_back({.rule = rule, .to = to});
      Want(rule);
    }
    return absl::OkStatus();
  }

  absl::Status CheckWork() const {
    if (work_ <= kMaxCompileWork) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("the grammar takes more than ", kMaxCompileWork,
                     " steps to compile: too many alternatives that begin alike"));
  }

  // Finished states in rising need: a state's need is that of the cheapest way to its rule's end,
  // and a way's need that of its dearest step. A call's step needs one more than the rule's start.
  void ComputeNeed() {
    const int32_t count = a_.num_states();
    a_.need_.assign(At(count), kUnreached);
    std::vector<std::vector<int32_t>> readers(At(count));  // by byte edge, once per class run
    struct Caller {
      int32_t state, start, to;
    };
    std::vector<std::vector<Caller>> callers(At(count));  // by either end of the call
    for (int32_t state = 0; state < count; ++state) {
      int32_t previous = kNoState;
      for (int32_t c = 0; c < a_.num_classes_; ++c) {
        const int32_t to = a_.Next(state, c);
        if (to != Automaton::kNone && to != previous) readers[At(to)].push_back(state);
        previous = to;
      }
      for (const Automaton::CallEdge& call : a_.Calls(state)) {
        callers[At(call.to)].push_back({state, call.start, call.to});
        callers[At(call.start)].push_back({state, call.start, call.to});
      }
    }
    std::vector<std::vector<int32_t>> reached(kUnreached + 1);
    for (int32_t state = 0; state < count; ++state) {
      if (a_.IsAccepting(state)) reached[0].push_back(state);
    }
    for (int32_t need = 0; need < kUnreached; ++need) {
      while (!reached[At(need)].empty()) {
        const int32_t state = reached[At(need)].back();
        reached[At(need)].pop_back();
        if (a_.Need(state) < kUnreached) continue;
        a_.need_[At(state)] = need;
        for (const int32_t reader : readers[At(state)]) reached[At(need)].push_back(reader);
        for (const Caller& caller : callers[At(state)]) {
          // Usable once both ends are finished.
          const int32_t way = std::max(a_.Need(caller.start) + 1, a_.Need(caller.to));
          if (way < kUnreached) reached[At(way)].push_back(caller.state);
        }
      }
    }
  }

  void Prune() {
    const int32_t count = a_.num_states();
    a_.final_.assign(At(count), 1);
    for (int32_t state = 0; state < count; ++state) {
      for (int32_t c = 0; c < a_.num_classes_; ++c) {
        int32_t& to = a_.table_[At(state) * At(a_.num_classes_) + At(c)];
        if (to == Automaton::kNone) continue;
        if (a_.Need(to) >= kUnreached) {
          to = Automaton::kNone;
        } else {
          a_.final_[At(state)] = 0;
        }
      }
      std::vector<Automaton::CallEdge>& calls = a_.calls_[At(state)];
      const auto usable = [&](const Automaton::CallEdge& call) {
        return a_.Need(call.start) + 1 < kUnreached && a_.Need(call.to) < kUnreached;
      };
      calls.erase(std::remove_if(calls.begin(), calls.end(),
                                 [&](const auto& call) { return !usable(call); }),
                  calls.end());
      if (!calls.empty()) a_.final_[At(state)] = 0;
    }
  }

  // Rules in the order in which their starts enter each other, callees first; then how many ways
  // of entering each state has.
  absl::Status CheckEntries() {
    const size_t rules = nfa_.rules().size();
    a_.first_.resize(rules);
    entries_.assign(rules, 0);
    std::vector<uint8_t> color(rules, 0);  // 1: open, 2: done
    for (const int32_t wanted : wanted_) {
      // Depth first with a stack of our own: chains of references may be as long as there are
      // rules.
      std::vector<int32_t> open = {wanted};
      while (!open.empty()) {
        const int32_t rule = open.back();
        if (color[At(rule)] == 2) {
          open.pop_back();
          continue;
        }
        const absl::Span<const Automaton::CallEdge> calls = a_.Calls(start_of_rule_[At(rule)]);
        if (std::exchange(color[At(rule)], 1) == 1) {
          color[At(rule)] = 2;
          open.pop_back();
          RETURN_IF_ERROR(FinishRule(rule));
          continue;
        }
        for (const Automaton::CallEdge& call : calls) {
          if (color[At(call.rule)] == 1) {
            return absl::InvalidArgumentError(absl::StrCat(
                nfa_.rule(call.rule).name, " refers to itself without anything in between"));
          }
          if (color[At(call.rule)] == 0) open.push_back(call.rule);
        }
      }
    }
    for (int32_t state = 0; state < a_.num_states(); ++state) {
      RETURN_IF_ERROR(CountEntries(state).status());
    }
    return absl::OkStatus();
  }

  absl::Status FinishRule(int32_t rule) {
    const int32_t start = start_of_rule_[At(rule)];
    CHECK(rule == wanted_[0] || !a_.IsAccepting(start)) << nfa_.rule(rule).name << " can be empty";
    ASSIGN_OR_RETURN(entries_[At(rule)], CountEntries(start));
    for (int32_t c = 0; c < a_.num_classes_; ++c) {
      bool can = a_.Next(start, c) != Automaton::kNone;
      for (const Automaton::CallEdge& call : a_.Calls(start)) can |= a_.CanBegin(call.rule, c);
      if (can) a_.first_[At(rule)].set(At(c));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<int32_t> CountEntries(int32_t state) const {
    int32_t count = 0;
    for (const Automaton::CallEdge& call : a_.Calls(state)) {
      count += 1 + entries_[At(call.rule)];
      if (count > kMaxEntries) {
        return absl::InvalidArgumentError(
            absl::StrCat("at one place more than ", kMaxEntries,
                         " alternatives (nested ones counted) may begin"));
      }
    }
    return count;
  }

  const Nfa& nfa_;
  const ByteSet available_;
  Automaton a_;
  std::bitset<256> class_available_;
  std::vector<int32_t> start_of_rule_;
  std::vector<int32_t> wanted_;  // rules in the order in which they were first called
  std::vector<int32_t> entries_;

  // One rule's construction.
  int32_t rule_end_ = 0;
  absl::flat_hash_map<Subset, int32_t> known_;
  std::vector<std::pair<int32_t, Subset>> pending_;

  int64_t work_ = 0;
  int32_t call_edges_ = 0;
  int32_t stamp_ = 0;
  std::vector<int32_t> seen_;
  std::vector<int32_t> stack_;
  std::vector<Subset> targets_;
};

absl::StatusOr<Automaton> Automaton::Build(const Nfa& nfa, int32_t root, const ByteSet& available) {
  return AutomatonBuilder(nfa, available).Build(root);
}

size_t Automaton::memory_bytes() const {
  size_t calls = calls_.size() * sizeof(calls_[0]);
  for (const std::vector<CallEdge>& edges : calls_) calls += edges.capacity() * sizeof(CallEdge);
  return table_.capacity() * sizeof(int32_t) + calls + accepting_.size() * 6 +
         first_.size() * sizeof(first_[0]);
}

}  // namespace fixpoint
