#include "text/chat_template_messages.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace motley {
namespace {

using Json = nlohmann::ordered_json;

std::string adapted(std::string_view messages, bool takes_parts = false) {
  auto result = adapt_messages(Json::parse(messages), takes_parts);
  if (!result.ok()) return result.error().message();
  return *result ? (*result)->dump() : "as it is";
}

std::string with_arguments(const std::string& text) {
  return Json::array({{{"role", "assistant"}, {"tool_calls", {{{"function", {{"name", "f"}, {"arguments", text}}}}}}}})
      .dump();
}

TEST(ChatTemplateMessages, Adapt_PlainMessages_ComeBackAsTheyAre) {
  EXPECT_EQ(adapted(R"([{"role":"user","content":"a","name":"n"},{"role":"assistant","content":null}])"), "as it is");
  EXPECT_EQ(adapted(R"([{"role":"user","content":[{"type":"text","text":"a"}]}])", true), "as it is");
  EXPECT_EQ(adapted("[]"), "as it is");
}

TEST(ChatTemplateMessages, Adapt_NullMembersAndNoCalls_AreLeftOut) {
  EXPECT_EQ(adapted(R"([{"role":"assistant","content":null,"tool_calls":null,"refusal":null,"audio":null}])"),
            R"([{"role":"assistant","content":null}])");
  EXPECT_EQ(adapted(R"([{"role":"assistant","content":"a","tool_calls":[]}])"),
            R"([{"role":"assistant","content":"a"}])");
}

TEST(ChatTemplateMessages, Adapt_ArgumentsAsText_BecomeAnObject) {
  const std::string head = R"([{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":)";
  EXPECT_EQ(adapted(with_arguments(R"({"b":[1,"\u00e9,]"],"a":{"c":null}})")),
            head + R"({"b":[1,"é,]"],"a":{"c":null}}}}]}])");
  EXPECT_EQ(adapted(with_arguments("")), head + "{}}}]}]");
  EXPECT_EQ(adapted(head + R"({"x":1}}}]}])"), head + R"({"x":1}}}]}])");
}

TEST(ChatTemplateMessages, Adapt_ArgumentsThatAreNoObject_Refused) {
  for (const char* text : {"[1]", "1", "{", "{\"a\":}", "{} x", "\xc3", "{\"a\":1e999}", "null"}) {
    EXPECT_EQ(
        adapt_messages(Json::parse(R"([{"role":"assistant","tool_calls":[{"function":{"name":"f"}}]}])"), false).ok(),
        true);
    Json messages = {{{"role", "assistant"}, {"tool_calls", {{{"function", {{"name", "f"}}}}}}}};
    messages[0]["tool_calls"][0]["function"]["arguments"] = text;
    auto result = adapt_messages(messages, false);
    ASSERT_FALSE(result.ok()) << text;
    EXPECT_EQ(result.error().message(), "messages[0].tool_calls[0].function.arguments must be a JSON object") << text;
  }
}

TEST(ChatTemplateMessages, Adapt_HostileArguments_RefusedBeforeTheyAreParsed) {
  const std::string message =
      "messages[0].tool_calls[0].function.arguments is nested deeper than 64 levels or too large";
  EXPECT_EQ(adapted(with_arguments(std::string(1 << 20, '['))), message);
  std::string wide = "{\"a\":[0";
  for (size_t i = 0; i < kArgumentValuesMax; ++i) wide += ",0";
  EXPECT_EQ(adapted(with_arguments(wide + "]}")), message);
  EXPECT_NE(adapted(with_arguments("{\"a\":\"" + std::string(1 << 20, '[') + "\"}")), message);
}

TEST(ChatTemplateMessages, Adapt_Thoughts_AreFoundUnderBothNames) {
  EXPECT_EQ(adapted(R"([{"role":"assistant","content":"a","reasoning":"r"}])"),
            R"([{"role":"assistant","content":"a","reasoning":"r","reasoning_content":"r","thinking":"r"}])");
  EXPECT_EQ(adapted(R"([{"role":"assistant","reasoning_content":"r","thinking":"t","reasoning":null}])"),
            R"([{"role":"assistant","reasoning_content":"r","thinking":"t"}])");
}

TEST(ChatTemplateMessages, Adapt_WrongShapes_NameTheMessage) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({})", "messages must be an array"},
      {R"([1])", "messages[0] must be an object"},
      {R"([{"role":"a"},{"role":1}])", "messages[1].role must be a string"},
      {R"([{"role":"a","content":1}])", "messages[0].content must be a string or an array of parts"},
      {R"([{"role":"a","tool_calls":{}}])", "messages[0].tool_calls must be an array"},
      {R"([{"role":"a","tool_calls":[{"name":"f"}]}])",
       R"(messages[0].tool_calls[0] must be {"type": "function", "function": {"name", "arguments"}})"},
      {R"([{"role":"a","tool_calls":[{"function":{"name":1}}]}])",
       R"(messages[0].tool_calls[0] must be {"type": "function", "function": {"name", "arguments"}})"},
  };
  for (const auto& [messages, error] : cases) EXPECT_EQ(adapted(messages), error) << messages;
}

}  // namespace
}  // namespace motley
