// Values of chat templates: those of JSON, with the origin of every string, and what templates make
// of them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"

#include "text/template/marked_string.h"

namespace fixpoint {

class Value;

struct Undefined {};
struct None {};
// A number that is no int64, kept as Python prints it. It can be printed and compared for equality,
// not calculated with.
struct NumberText {
  std::string text;
};
struct ListValue;
struct DictValue;
struct NamespaceValue;
struct LoopValue;
// A macro of the template, by its index there, or a built-in function.
struct FunctionReference {
  static constexpr size_t kBuiltIn = static_cast<size_t>(-1);
  size_t index;
};

// Cheap to copy: strings, lists and dicts are shared and immutable.
class Value {
 public:
  using Storage =
      std::variant<Undefined, None, bool, int64_t, NumberText, std::shared_ptr<const MarkedString>,
                   std::shared_ptr<const ListValue>, std::shared_ptr<const DictValue>,
                   std::shared_ptr<NamespaceValue>, std::shared_ptr<const LoopValue>,
                   FunctionReference>;

  Value() = default;  // undefined
  static Value MakeNone() { return Value(Storage(None{})); }
  static Value Bool(bool value) { return Value(Storage(value)); }
  static Value Int(int64_t value) { return Value(Storage(value)); }
  static Value Number(std::string text) { return Value(Storage(NumberText{std::move(text)})); }
  // `trusted`: control tokens in it may take effect. Only for strings of the operator, such as
  // bos_token.
  static Value String(std::string text, bool trusted = false) {
    return String(MarkedString(std::move(text), trusted));
  }
  static Value String(MarkedString text) {
    return Value(Storage(std::make_shared<const MarkedString>(std::move(text))));
  }
  static Value List(std::vector<Value> items, bool tuple = false);
  static Value Dict(DictValue dict);
  static Value Namespace();
  static Value Loop(LoopValue loop);
  static Value Function(size_t index) { return Value(Storage(FunctionReference{index})); }

  bool is_undefined() const { return std::holds_alternative<Undefined>(storage_); }
  bool is_none() const { return std::holds_alternative<None>(storage_); }
  bool is_number_text() const { return std::holds_alternative<NumberText>(storage_); }

  // Null when the value is of another kind.
  const bool* as_bool() const { return std::get_if<bool>(&storage_); }
  const int64_t* as_int() const { return std::get_if<int64_t>(&storage_); }
  const std::string* as_number_text() const {
    const auto* number = std::get_if<NumberText>(&storage_);
    return number ? &number->text : nullptr;
  }
  const MarkedString* as_string() const { return Shared<const MarkedString>(); }
  const ListValue* as_list() const { return Shared<const ListValue>(); }
  const DictValue* as_dict() const { return Shared<const DictValue>(); }
  NamespaceValue* as_namespace() const { return Shared<NamespaceValue>(); }
  const LoopValue* as_loop() const { return Shared<const LoopValue>(); }
  const FunctionReference* as_function() const { return std::get_if<FunctionReference>(&storage_); }

  // "string", "list" and so on, for messages.
  absl::string_view KindName() const;
  // Python's truth value.
  bool Truthy() const;
  // 0 for scalars, 1 + the deepest item for lists and dicts.
  int Depth() const;

 private:
  explicit Value(Storage storage) : storage_(std::move(storage)) {}
  template <typename T>
  T* Shared() const {
    const auto* pointer = std::get_if<std::shared_ptr<T>>(&storage_);
    return pointer ? pointer->get() : nullptr;
  }

  Storage storage_;
};

struct ListValue {
  std::vector<Value> items;
  bool tuple = false;  // matters for printing and equality alone
  int depth = 1;
};

// Keys are strings, in order of insertion. They count as untrusted when a template prints them.
class DictValue {
 public:
  // Replaces the value of a key that is there, as Python does.
  void Set(absl::string_view key, Value value);
  const Value* Find(absl::string_view key) const;
  const std::vector<std::pair<std::string, Value>>& entries() const { return entries_; }
  int depth() const { return depth_; }

 private:
  std::vector<std::pair<std::string, Value>> entries_;
  absl::flat_hash_map<std::string, size_t> index_;
  int depth_ = 1;
};

// What namespace() makes: the one thing in a template that can be changed. It never lies inside
// another value, so that no cycle can arise.
struct NamespaceValue {
  absl::flat_hash_map<std::string, Value> attributes;
};

// The variable `loop` of one iteration.
struct LoopValue {
  int64_t index0 = 0;
  std::shared_ptr<const std::vector<Value>> items;
};

// Deep equality as in Python: True == 1, lists in order, dicts in any order. *steps_left falls by
// the work done; false when it runs out (the caller checks).
bool ValuesEqual(const Value& a, const Value& b, int64_t* steps_left);

}  // namespace fixpoint
