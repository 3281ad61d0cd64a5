// Drives grammar/ with a bundle's vocabulary for grammar_test.py: answers one request per line.
//   grammar_probe BUNDLE
//     in:  {"kind": "schema" | "regex" | "object", "text": "...", "walks": n, "seed": n}
//     out: {"texts": [...], "first_us": n, "compile_us": n, "worst_us": n, "mean_us": n, "tokens":
//     n}
//          or {"error": "..."}
// A walk takes allowed tokens at random: any, or one that begins as structure does; after some
// tokens those that close what is open. Times are of one FillMask.
#include <simdjson.h>
#include <time.h>

#include <algorithm>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/json_writer.h"
#include "bundle/bundle.h"
#include "grammar/constraint_factory.h"
#include "text/tokenizer.h"

namespace fixpoint {
namespace {

constexpr int kLongestWalk = 5000;

// Of this thread's own time: a busy machine does not count.
int64_t NowUs() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return int64_t{now.tv_sec} * 1000000 + now.tv_nsec / 1000;
}

struct Times {
  int64_t compile_us = 0;
  int64_t first_us = 0;
  int64_t worst_us = 0;
  int64_t sum_us = 0;
  int64_t tokens = 0;
};

class Walker {
 public:
  Walker(const Tokenizer& tokenizer, Times* times) : tokenizer_(tokenizer), times_(*times) {
    mask_.resize(static_cast<size_t>((tokenizer.vocab_size() + 31) / 32));
    const size_t vocab = static_cast<size_t>(tokenizer.vocab_size());
    structure_.resize(vocab);
    for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
      const absl::string_view bytes = tokenizer.TokenBytes(id);
      if (bytes.empty()) continue;
      structure_[static_cast<size_t>(id)] =
          absl::string_view("\"{}[],:\\").find(bytes[0]) != bytes.npos;
      if (bytes.size() > 1) continue;
      singles_.push_back(id);
      if (bytes[0] >= '0' && bytes[0] <= '9') digits_.push_back(id);
      if (absl::string_view("\"}]").find(bytes[0]) != bytes.npos) closing_.push_back(id);
    }
    // A quote first, then what closes objects and arrays.
    std::sort(closing_.begin(), closing_.end(), [&](int32_t a, int32_t b) {
      return (tokenizer_.TokenBytes(a) == "\"") > (tokenizer_.TokenBytes(b) == "\"");
    });
  }

  std::string Walk(TokenConstraint& constraint, std::mt19937_64& random) {
    const int patience = static_cast<int>(random() % 200);
    std::string text;
    for (int step = 0; step < kLongestWalk; ++step) {
      const int64_t start = NowUs();
      constraint.FillMask(absl::MakeSpan(mask_));
      const int64_t took = NowUs() - start;
      if (times_.tokens++ == 0) times_.first_us = took;
      times_.worst_us = std::max(times_.worst_us, took);
      times_.sum_us += took;
      const int32_t token = Choose(random, step >= patience);
      if (token < 0) return absl::StrCat(text, " <DEAD END>");
      if (!constraint.Accept(token)) return absl::StrCat(text, " <REFUSED ", token, ">");
      if (IsEos(token)) return text;
      absl::StrAppend(&text, tokenizer_.TokenBytes(token));
    }
    return absl::StrCat(text, " <NO END>");
  }

 private:
  bool IsEos(int32_t id) const {
    const auto& eos = tokenizer_.spec().eos_ids;
    return std::find(eos.begin(), eos.end(), id) != eos.end();
  }
  bool Allowed(int32_t id) const {
    return (mask_[static_cast<size_t>(id / 32)] >> (id % 32) & 1) != 0;
  }

  int32_t Choose(std::mt19937_64& random, bool close) {
    for (const int32_t id : tokenizer_.spec().eos_ids) {
      if (Allowed(id) && (close || random() % 4 == 0)) return id;
    }
    std::vector<int32_t> allowed, structure;
    const auto look = [&](int32_t id) {
      if (!Allowed(id) || IsEos(id)) return;
      allowed.push_back(id);
      if (structure_[static_cast<size_t>(id)]) structure.push_back(id);
    };
    if (close) {
      // Not always: a pattern may want other characters first, and a quote may be an escaped one.
      const uint64_t kind = random() % 8;
      for (const int32_t id : closing_) {
        if (Allowed(id) && kind < (id == closing_[0] ? 4 : 6)) return id;
      }
      const int32_t digit = digits_[random() % digits_.size()];
      if (Allowed(digit) && kind == 6) return digit;
      for (const int32_t id : singles_) look(id);
    } else {
      for (int32_t id = 0; id < tokenizer_.vocab_size(); ++id) look(id);
    }
    for (const int32_t id : tokenizer_.spec().eos_ids) {
      if (allowed.empty() && Allowed(id)) return id;
    }
    if (allowed.empty()) return -1;
    const std::vector<int32_t>& from = !structure.empty() && random() % 2 ? structure : allowed;
    return from[random() % from.size()];
  }

  const Tokenizer& tokenizer_;
  Times& times_;
  std::vector<uint32_t> mask_;
  std::vector<bool> structure_;   // by id: begins as structure does
  std::vector<int32_t> singles_;  // tokens of one byte
  std::vector<int32_t> digits_;
  std::vector<int32_t> closing_;  // the first one that is allowed is taken
};

std::string Answer(const Tokenizer& tokenizer, ConstraintFactory& factory,
                   simdjson::dom::element request) {
  const std::string_view kind = request["kind"].get_string().value();
  const std::string_view text = request["text"].get_string().value();
  std::mt19937_64 random(request["seed"].get_uint64().value());
  const auto make = [&]() {
    const absl::string_view view(text.data(), text.size());
    if (kind == "schema") return factory.JsonSchema(view);
    return kind == "regex" ? factory.Regex(view) : factory.JsonObject();
  };
  Times times;
  Walker walker(tokenizer, &times);
  JsonWriter json;
  json.BeginObject();
  json.Key("texts");
  json.BeginArray();
  const uint64_t walks = request["walks"].get_uint64().value();
  for (uint64_t i = 0; i < walks; ++i) {
    const int64_t start = NowUs();
    auto constraint = make();
    if (i == 0) times.compile_us = NowUs() - start;
    if (!constraint.ok()) {
      JsonWriter error;
      error.BeginObject();
      error.Field("error", constraint.status().message());
      error.EndObject();
      return error.Take();
    }
    json.String(walker.Walk(**constraint, random));
  }
  json.EndArray();
  json.Field("compile_us", times.compile_us);
  json.Field("first_us", times.first_us);
  json.Field("worst_us", times.worst_us);
  json.Field("mean_us", times.tokens > 0 ? times.sum_us / times.tokens : 0);
  json.Field("tokens", times.tokens);
  json.EndObject();
  return json.Take();
}

int Run(const char* path) {
  auto bundle = ReadBundle(path);
  if (!bundle.ok()) {
    std::cerr << bundle.status() << "\n";
    return 1;
  }
  auto tokenizer = Tokenizer::Create(std::move(bundle->tokenizer));
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status() << "\n";
    return 1;
  }
  auto factory = ConstraintFactory::Create(**tokenizer, (*tokenizer)->spec().eos_ids);
  if (!factory.ok()) {
    std::cerr << factory.status() << "\n";
    return 1;
  }
  simdjson::dom::parser parser;
  for (std::string line; std::getline(std::cin, line);) {
    simdjson::dom::element request;
    if (parser.parse(line).get(request) != simdjson::SUCCESS) {
      std::cerr << "not JSON: " << line.substr(0, 200) << "\n";
      return 1;
    }
    std::cout << Answer(**tokenizer, **factory, request) << std::endl;
  }
  return 0;
}

}  // namespace
}  // namespace fixpoint

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: grammar_probe BUNDLE\n";
    return 2;
  }
  return fixpoint::Run(argv[1]);
}
