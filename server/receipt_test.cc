#include "server/receipt.h"

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

namespace fixpoint {
namespace {

struct Answered {
  ReceiptRequest request;
  std::vector<int32_t> output;
  ReceiptEnd end;
};

Answered Example() {
  Answered answered;
  ReceiptRequest& request = answered.request;
  request.bundle_digest = std::string(64, 'd');
  request.numerics_version = 3;
  request.prompt = {1, 2, 70000};
  request.sampling = {.inverse_temperature_q16 = 93623,
                      .top_k = 40,
                      .top_p_q16 = 58982,
                      .min_p_q16 = 3277,
                      .seed = 0x0123456789abcdef};
  request.adjust.repetition_q16 = 72090;
  request.adjust.presence_q16 = -32768;
  request.adjust.frequency_q16 = 6554;
  request.adjust.bias_q16 = {{5, 65536}, {9, -6553600}};
  request.max_tokens = 16;
  request.min_tokens = 2;
  request.ignore_eos = false;
  request.stop_ids = {7, 8};
  request.stop_strings = {"\n\n", "END"};
  request.constraint = {ConstraintKind::kRegex, "[a-z]+"};
  answered.output = {11, 12, 13};
  answered.end = {.reason = ReceiptReason::kStop, .stop_token_id = 2};
  return answered;
}

std::string Receipt(const Answered& answered) {
  return ReceiptHasher(answered.request).Finish(answered.output, answered.end);
}

// Computed once by a few lines of Python that write the bytes of receipt.h anew
// (tests/receipt_oracle.py). If it changes, receipts of earlier releases can no longer be checked.
TEST(ReceiptTest, KnownDigest) {
  EXPECT_EQ(Receipt(Example()), "0bd646b5ecfcaaff97f3105d41afbe45d2d31b9aa0bb820e78520b4232493a80");
}

TEST(ReceiptTest, EachFieldChangesIt) {
  const std::vector<std::pair<const char*, std::function<void(Answered&)>>> changes = {
      {"bundle", [](Answered& a) { a.request.bundle_digest[63] = 'e'; }},
      {"numerics", [](Answered& a) { ++a.request.numerics_version; }},
      {"prompt id", [](Answered& a) { a.request.prompt[2] = 70001; }},
      {"prompt order", [](Answered& a) { std::swap(a.request.prompt[0], a.request.prompt[1]); }},
      {"prompt longer", [](Answered& a) { a.request.prompt.push_back(0); }},
      {"temperature", [](Answered& a) { ++a.request.sampling.inverse_temperature_q16; }},
      {"top_k", [](Answered& a) { ++a.request.sampling.top_k; }},
      {"top_p", [](Answered& a) { ++a.request.sampling.top_p_q16; }},
      {"min_p", [](Answered& a) { ++a.request.sampling.min_p_q16; }},
      {"seed, low half", [](Answered& a) { ++a.request.sampling.seed; }},
      {"seed, high half", [](Answered& a) { a.request.sampling.seed ^= uint64_t{1} << 63; }},
      {"repetition", [](Answered& a) { ++a.request.adjust.repetition_q16; }},
      {"presence", [](Answered& a) { ++a.request.adjust.presence_q16; }},
      {"frequency", [](Answered& a) { ++a.request.adjust.frequency_q16; }},
      {"bias id", [](Answered& a) { a.request.adjust.bias_q16[1].first = 10; }},
      {"bias", [](Answered& a) { a.request.adjust.bias_q16[1].second = 0; }},
      {"bias less", [](Answered& a) { a.request.adjust.bias_q16.pop_back(); }},
      {"max_tokens", [](Answered& a) { ++a.request.max_tokens; }},
      {"min_tokens", [](Answered& a) { ++a.request.min_tokens; }},
      {"ignore_eos", [](Answered& a) { a.request.ignore_eos = true; }},
      {"stop id", [](Answered& a) { a.request.stop_ids[0] = 6; }},
      {"stop ids less", [](Answered& a) { a.request.stop_ids.pop_back(); }},
      {"stop string", [](Answered& a) { a.request.stop_strings[1] = "END."; }},
      {"stop strings cut elsewhere", [](Answered& a) { a.request.stop_strings = {"\n\nEND"}; }},
      {"constraint kind",
       [](Answered& a) { a.request.constraint.kind = ConstraintKind::kJsonSchema; }},
      {"constraint text", [](Answered& a) { a.request.constraint.text += "?"; }},
      {"output id", [](Answered& a) { a.output[0] = 10; }},
      {"output shorter", [](Answered& a) { a.output.pop_back(); }},
      {"reason", [](Answered& a) { a.end.reason = ReceiptReason::kLength; }},
      {"stop token", [](Answered& a) { a.end.stop_token_id = 3; }},
      {"stopped by string", [](Answered& a) { a.end.stop_string = "END"; }},
  };
  std::map<std::string, std::string> seen = {{Receipt(Example()), "unchanged"}};
  for (const auto& [name, change] : changes) {
    Answered answered = Example();
    change(answered);
    const auto [place, is_new] = seen.emplace(Receipt(answered), name);
    EXPECT_TRUE(is_new) << name << " equals " << place->second;
  }
}

// What a number at the end of one list could be mistaken for at the beginning of the next.
TEST(ReceiptTest, ListsDoNotRunIntoEachOther) {
  Answered a = Example();
  a.request.stop_ids = {7, 8};
  a.request.stop_strings = {};
  Answered b = a;
  b.request.stop_ids = {7};
  b.request.stop_strings = {std::string("\x08\0\0\0", 4)};
  EXPECT_NE(Receipt(a), Receipt(b));
}

TEST(ReceiptTest, OrderAndRepetitionOfStopsAndBiasDoNotMatter) {
  Answered answered = Example();
  answered.request.stop_ids = {8, 7, 8};
  answered.request.stop_strings = {"END", "\n\n", "END"};
  answered.request.adjust.bias_q16 = {{9, -6553600}, {5, 65536}};
  EXPECT_EQ(Receipt(answered), Receipt(Example()));
}

}  // namespace
}  // namespace fixpoint
