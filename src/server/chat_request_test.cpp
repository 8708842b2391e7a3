#include "server/chat_request.hpp"

#include <gtest/gtest.h>

#include <string>

#include "server/generation_request.hpp"

namespace motley {
namespace {

constexpr CallLimits kLimits{1000, 512, false};
constexpr std::string_view kTools = R"("tools":[{"type":"function","function":{"name":"f","parameters":{}}}])";

std::string with_tools(std::string_view more) { return fmt::format("{}{}", kTools, more); }

std::string body_of(std::string_view members) {
  const bool own = members.starts_with(R"("messages")");
  return fmt::format("{{{}{}}}", own ? "" : R"("messages":[{"role":"user","content":"hi"}],)", members);
}

MaybeError chat_error(std::string_view members) {
  GenerationCall call;
  return parse_generation_call(CallKind::kChat, body_of(members), kLimits, call);
}

ChatCall good(std::string_view members) {
  GenerationCall call;
  const MaybeError error = parse_generation_call(CallKind::kChat, body_of(members), kLimits, call);
  EXPECT_FALSE(error) << members << ": " << error->message;
  return call.chat;
}

struct BadCase {
  std::string members;  // beside good messages, or with messages of its own
  std::string_view param;
};

const BadCase kBadCases[] = {
    {R"("messages":[])", "messages"},
    {R"("messages":"hi")", "messages"},
    {R"("messages":["hi"])", "messages"},
    {R"("messages":[{"content":"hi"}])", "messages"},
    {R"("messages":[{"role":1,"content":"hi"}])", "messages"},
    {R"("messages":[{"role":"user"}])", "messages"},
    {R"("messages":[{"role":"tool","content":null}])", "messages"},
    {R"("messages":[{"role":"user","content":5}])", "messages"},
    {R"("messages":[{"role":"user","content":[{"type":"image_url"}]}])", "messages"},
    {R"("messages":[{"role":"assistant","tool_calls":[{}]}])", "messages"},
    {R"("messages":[{"role":"assistant","tool_calls":[{"type":"function","function":{}}]}])", "messages"},
    {R"("messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f"}}]}])", "messages"},
    {R"("messages":[{"role":"assistant","tool_calls":[{"type":"function","function":{"name":"f","arguments":1}}]}])",
     "messages"},
    {R"("messages":[{"role":"assistant","tool_calls":{}}])", "messages"},
    {R"("messages":[{"role":"user","content":"a","tool_calls":[{"type":"function","function":{"name":"f"}}]}])",
     "messages"},
    {R"("messages":[{"role":"assistant","function_call":{"name":"f"}}])", "messages"},
    {R"("messages":[{"role":"assistant","content":"a","audio":{"id":"x"}}])", "messages"},
    {R"("tools":{})", "tools"},
    {R"("tools":[{"type":"function"}])", "tools"},
    {R"("tools":[{"type":"retrieval","function":{"name":"f"}}])", "tools"},
    {R"("tools":[{"function":{"name":"f"}}])", "tools"},
    {R"("tools":[{"type":"function","function":{"name":1}}])", "tools"},
    {std::string(kTools), "tool_choice"},
    {with_tools(R"(,"tool_choice":null)"), "tool_choice"},
    {with_tools(R"(,"tool_choice":"auto")"), "tool_choice"},
    {with_tools(R"(,"tool_choice":"required")"), "tool_choice"},
    {with_tools(R"(,"tool_choice":{"type":"function","function":{"name":"f"}})"), "tool_choice"},
    {R"("tool_choice":"required")", "tool_choice"},
    {R"("tool_choice":{"type":"function","function":{"name":"f"}})", "tool_choice"},
    {R"("documents":{})", "documents"},
    {R"("documents":["text"])", "documents"},
    {R"("chat_template":"{{ messages }}")", "chat_template"},
    {R"("chat_template_kwargs":[])", "chat_template_kwargs"},
    {R"("chat_template_kwargs":{"messages":[]})", "chat_template_kwargs"},
    {R"("chat_template_kwargs":{"tools":[]})", "chat_template_kwargs"},
    {R"("chat_template_kwargs":{"chat_template":"x"})", "chat_template_kwargs"},
    {R"("add_generation_prompt":1)", "add_generation_prompt"},
    {R"("continue_final_message":"yes")", "continue_final_message"},
    {R"("continue_final_message":true)", "continue_final_message"},
    {R"("continue_final_message":true,"add_generation_prompt":true)", "continue_final_message"},
};

TEST(ChatRequest, EveryBadField_Gets400NamingIt) {
  for (const BadCase& bad : kBadCases) {
    const MaybeError error = chat_error(bad.members);
    ASSERT_TRUE(error) << bad.members;
    EXPECT_EQ(error->status, 400) << bad.members;
    EXPECT_EQ(error->param, bad.param) << bad.members << ": " << error->message;
    EXPECT_NE(error->message.find(bad.param), std::string::npos) << error->message;
  }
}

TEST(ChatRequest, Tools_WithoutAChoice_AreRefusedWithTheRemedy) {
  EXPECT_NE(chat_error(kTools)->message.find("\"tool_choice\": \"none\""), std::string::npos);
}

TEST(ChatRequest, ToolsAndDocuments_ReachTheCall) {
  const ChatCall call = good(with_tools(R"(,"tool_choice":"none","documents":[{"title":"t","text":"d"}])"));
  EXPECT_EQ(call.tools[0]["function"]["name"], "f");
  EXPECT_EQ(call.documents.dump(), R"([{"title":"t","text":"d"}])");
  const ChatCall none = good(R"("tools":[],"tool_choice":"auto","documents":[],"chat_template":null)");
  EXPECT_TRUE(none.tools.is_null() && none.documents.is_null());
}

TEST(ChatRequest, ToolCalls_KeepContentNullOnlyWhereThereAreSome) {
  const ChatCall call = good(R"("messages":[
      {"role":"assistant","content":null,"tool_calls":[
          {"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]},
      {"role":"tool","tool_call_id":"1","content":"r"},{"role":"assistant","content":null,"tool_calls":[]},
      {"role":"assistant","tool_calls":null,"function_call":null,"audio":null}])");
  EXPECT_TRUE(call.messages[0]["content"].is_null());
  EXPECT_EQ(call.messages[0]["tool_calls"][0]["function"]["arguments"], "{}");
  EXPECT_EQ(call.messages[2]["content"], "");
  EXPECT_EQ(call.messages[3]["content"], "");
}

TEST(ChatRequest, ContinueFinalMessage_NeedsNoGenerationPrompt) {
  EXPECT_TRUE(good(R"("continue_final_message":true,"add_generation_prompt":false)").continue_final_message);
}

TEST(ChatRequest, Tokenize_TakesTheSameConversation) {
  TokenizeCall call;
  EXPECT_FALSE(parse_tokenize_call(body_of(with_tools(R"(,"continue_final_message":true,
      "add_generation_prompt":false,"documents":[{"text":"d"}],"chat_template_kwargs":{"a":1})")),
                                   call));
  EXPECT_EQ(call.chat.tools.size(), 1u);
  EXPECT_EQ(call.chat.documents.size(), 1u);
  EXPECT_TRUE(call.chat.continue_final_message && !call.chat.add_generation_prompt);
  EXPECT_EQ(call.chat.variables["a"], 1);
  TokenizeCall bad;
  EXPECT_EQ(parse_tokenize_call(body_of(R"("chat_template":"x")"), bad)->param, "chat_template");
}

}  // namespace
}  // namespace motley
