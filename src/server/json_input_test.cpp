#include "server/json_input.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/limits.hpp"

namespace motley {
namespace {

MaybeError parse(std::string_view body) {
  nlohmann::ordered_json out;
  return parse_json_object(body, out);
}

std::string nested(size_t depth) {
  // The outermost object is a level of its own.
  return "{\"a\":" + std::string(depth - 1, '[') + std::string(depth - 1, ']') + "}";
}

TEST(JsonInput, Object_IsParsed) {
  nlohmann::ordered_json out;
  ASSERT_FALSE(parse_json_object(R"({"b":1,"a":"\u00e9"})", out));
  EXPECT_EQ(out.dump(), "{\"b\":1,\"a\":\"é\"}");
}

TEST(JsonInput, EveryKindOfValue_IsParsedAsNlohmannDoes) {
  const std::string body =
      R"({"n":null,"t":true,"i":-9223372036854775808,"u":18446744073709551615,"f":-0.25,"s":"\"","l":[[],{},[1,[2]]],)"
      R"("o":{"b":{"c":[{}]},"a":0},"t":false})";
  nlohmann::ordered_json out;
  ASSERT_FALSE(parse_json_object(body, out));
  EXPECT_EQ(out, nlohmann::ordered_json::parse(body));
  EXPECT_EQ(out["t"], false) << "of a name that comes twice the last counts";
}

TEST(JsonInput, KeptTree_IsTakenApart) {
  nlohmann::ordered_json out;
  {
    const JsonKeeper keeper(out);
    ASSERT_FALSE(parse_json_object(R"({"a":[1,[2,{"b":"c"}]],"d":{"e":[]}})", out));
  }
  EXPECT_TRUE(out.is_object());
  EXPECT_TRUE(out.empty());
}

TEST(JsonInput, BadBytes_AreRefused) {
  const std::string_view bad[] = {"",
                                  "{",
                                  "[]",
                                  "1",
                                  "{\"a\":1}}",
                                  "{\"a\":\"\xff\"}",
                                  "\xEF\xBB",
                                  "{\"a\":1e999}",
                                  "{\"a\":\"\\ud800\"}",
                                  "{\"a\":\"\xed\xa0\x80\"}",
                                  "{\"a\":\"\xc0\xaf\"}",
                                  "nul",
                                  "{\"a\":NaN}",
                                  "{'a':1}",
                                  "\"\\"};
  for (const std::string_view body : bad) {
    const MaybeError error = parse(body);
    ASSERT_TRUE(error) << body;
    EXPECT_EQ(error->status, 400);
    EXPECT_FALSE(error->message.empty());
  }
}

TEST(JsonInput, Depth_IsBounded) {
  EXPECT_FALSE(parse(nested(limits::kJsonDepthMax)));
  const MaybeError error = parse(nested(limits::kJsonDepthMax + 1));
  ASSERT_TRUE(error);
  EXPECT_NE(error->message.find("nested"), std::string::npos);
  EXPECT_TRUE(parse(std::string(1u << 20, '[')));
}

TEST(JsonInput, BracketsInStrings_AreNoDepth) {
  EXPECT_FALSE(parse("{\"a\":\"" + std::string(1000, '[') + "\\\"" + std::string(1000, '{') + "\"}"));
}

TEST(JsonInput, MembersOfAnObject_AreBounded) {
  std::string body = "{";
  for (size_t i = 0; i <= kJsonObjectMembersMax; ++i) body += (i ? ",\"" : "\"") + std::to_string(i) + "\":0";
  EXPECT_TRUE(parse(body + "}"));
}

TEST(Utf8, InvalidBytes_AreFoundAndReplaced) {
  EXPECT_EQ(utf8_valid_prefix("aé😀"), std::string_view("aé😀").size());
  EXPECT_EQ(utf8_valid_prefix("ab\xF0\x9F\x98"), 2u);
  EXPECT_EQ(utf8_valid_prefix("\xF4\x90\x80\x80"), 0u);
  EXPECT_EQ(replace_invalid_utf8("a\xFF\xC3z"), "a\xEF\xBF\xBD\xEF\xBF\xBDz");
}

}  // namespace
}  // namespace motley
