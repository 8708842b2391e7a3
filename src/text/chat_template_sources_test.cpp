#include "text/chat_template_sources.hpp"

#include <gtest/gtest.h>

namespace motley {
namespace {

// "name=source;" of each, or the error.
std::string shown(std::string_view json) {
  auto result = parse_chat_template_sources(json);
  if (!result.ok()) return result.error().message();
  std::string out = result->names();
  for (const char* name : {"default", "tool_use"}) {
    if (const std::string* source = result->find(name)) out += "; " + std::string(name) + "=" + *source;
  }
  return out;
}

TEST(ChatTemplateSources, Parse_BothPublishedForms) {
  EXPECT_EQ(shown(R"({"bos_token": {"content": "<s>"}, "chat_template": "a{{ b }}\n", "z": [1, {"name": "x"}]})"),
            "default; default=a{{ b }}\n");
  EXPECT_EQ(shown(R"({"chat_template": [{"name": "default", "template": "d"}, {"template": "t", "more": {"name": 1},
                     "name": "tool_use"}, {"name": "rag", "template": "r"}]})"),
            "default, tool_use, rag; default=d; tool_use=t");
}

TEST(ChatTemplateSources, Parse_WithoutTemplate_GivesNone) {
  for (const char* json :
       {"{}", R"({"chat_template": null})", R"({"a": {"chat_template": "x"}})", R"({"a": ["chat_template", "x"]})",
        R"({"chat_template": []})", R"({"chat_template": ""})"}) {
    auto result = parse_chat_template_sources(json);
    ASSERT_TRUE(result.ok()) << json << result.error().message();
    EXPECT_TRUE(result->empty()) << json;
  }
}

TEST(ChatTemplateSources, Parse_SameKeyTwice_LastCounts) {
  EXPECT_EQ(shown(R"({"chat_template": [{"name": "tool_use", "template": "a"}], "chat_template": "b"})"),
            "default; default=b");
  EXPECT_EQ(shown(R"({"chat_template": [{"name": "default", "template": "a"}, {"name": "default", "template": "b"}]})"),
            "default; default=b");
}

TEST(ChatTemplateSources, Parse_WrongShapes_Refused) {
  const std::pair<std::string, std::string> cases[] = {
      {"", "not valid JSON near byte 1"},
      {"{\"chat_template\": \"a", "not valid JSON near byte 21"},
      {"{\"a\": 1} x", "not valid JSON near byte 10"},
      {"{\"chat_template\": \"\xff\"}", "not valid JSON near byte 20"},
      {"[]", "the file must be a JSON object"},
      {"\"a\"", "the file must be a JSON object"},
      {R"({"chat_template": 1})", R"("chat_template": must be a template or a list of {"name", "template"})"},
      {R"({"chat_template": {"default": "a"}})",
       R"("chat_template": must be a template or a list of {"name", "template"})"},
      {R"({"chat_template": ["a"]})", R"("chat_template": the list must hold objects)"},
      {R"({"chat_template": [{"name": "a"}]})",
       R"("chat_template": every template of the list needs "name" and "template")"},
      {R"({"chat_template": [{"name": 1, "template": "a"}]})",
       R"("chat_template": "name" and "template" must be strings)"},
      {R"({"chat_template": [{"name": "a", "template": ["x"]}]})",
       R"("chat_template": "name" and "template" must be strings)"},
      {"{\"a\": " + std::string(100, '[') + std::string(100, ']') + "}", "the JSON is nested deeper than 64 levels"},
  };
  for (const auto& [json, error] : cases) EXPECT_EQ(shown(json), error) << json;
}

TEST(ChatTemplateSources, Parse_TooMany_Refused) {
  std::string json = "{\"chat_template\": [";
  for (size_t i = 0; i <= kNamedTemplatesMax; ++i) {
    json += (i ? "," : "") + std::string("{\"template\": \"t\", \"name\": \"") + std::to_string(i) + "\"}";
  }
  EXPECT_EQ(shown(json + "]}"), "a model has at most 64 chat templates");
}

}  // namespace
}  // namespace motley
