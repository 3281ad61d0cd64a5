#include "base/json_writer.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>

#include "gtest/gtest.h"

namespace fixpoint {
namespace {

TEST(JsonWriterTest, NestsAndSeparates) {
  JsonWriter json;
  json.BeginObject();
  json.Field("s", "x");
  json.Field("i", std::numeric_limits<int64_t>::min());
  json.Field("u", std::numeric_limits<uint64_t>::max());
  json.Field("b", true);
  json.Field("d", 0.1);
  json.Key("n");
  json.Null();
  json.Key("a");
  json.BeginArray();
  json.BeginArray();
  json.EndArray();
  json.BeginObject();
  json.EndObject();
  json.Raw("{\"r\": 1}");
  json.Int(2);
  json.EndArray();
  json.EndObject();
  EXPECT_EQ(
      json.Take(),
      "{\"s\":\"x\",\"i\":-9223372036854775808,\"u\":18446744073709551615,\"b\":true,\"d\":0.1,"
      "\"n\":null,\"a\":[[],{},{\"r\": 1},2]}");
  json.String("again");
  EXPECT_EQ(json.Take(), "\"again\"");
}

TEST(JsonWriterTest, EscapesStrings) {
  EXPECT_EQ(JsonQuote("a\"\\/\b\f\n\r\t\x01\x1f\x7f"),
            "\"a\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\u001f\x7f\"");
  EXPECT_EQ(JsonQuote(absl::string_view("\0x", 2)), "\"\\u0000x\"");
  EXPECT_EQ(JsonQuote("\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"),
            "\"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\"");
}

TEST(JsonWriterTest, ReplacesWhatIsNotUtf8) {
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(JsonQuote("\xC3("), "\"" + r + "(\"");                        // cut two-byte sequence
  EXPECT_EQ(JsonQuote("\xE2\x82"), "\"" + r + r + "\"");                  // cut three-byte sequence
  EXPECT_EQ(JsonQuote("\xC0\x80"), "\"" + r + r + "\"");                  // overlong
  EXPECT_EQ(JsonQuote("\xED\xA0\x80"), "\"" + r + r + r + "\"");          // surrogate
  EXPECT_EQ(JsonQuote("\xF4\x90\x80\x80"), "\"" + r + r + r + r + "\"");  // above U+10FFFF
}

TEST(JsonWriterTest, DoublesReadBackExactly) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 10'000; ++i) {
    const uint64_t bits = random();
    double value;
    static_assert(sizeof(value) == sizeof(bits));
    std::memcpy(&value, &bits, sizeof(value));
    JsonWriter json;
    json.Double(value);
    const std::string text = json.Take();
    if (!std::isfinite(value)) {
      EXPECT_EQ(text, "null");
    } else {
      EXPECT_EQ(std::strtod(text.c_str(), nullptr), value) << text;
    }
  }
}

TEST(JsonWriterDeathTest, MisuseIsFatal) {
  EXPECT_DEATH(
      {
        JsonWriter json;
        json.BeginObject();
        json.Int(1);
      },
      "without a key");
  EXPECT_DEATH(
      {
        JsonWriter json;
        json.BeginArray();
        json.EndObject();
      },
      "stray");
  EXPECT_DEATH(
      {
        JsonWriter json;
        json.BeginArray();
        json.Take();
      },
      "not complete");
  EXPECT_DEATH(
      {
        JsonWriter json;
        json.Int(1);
        json.Int(2);
      },
      "second outermost");
}

}  // namespace
}  // namespace fixpoint
