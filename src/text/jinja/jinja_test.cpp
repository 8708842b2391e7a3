// The engine against Jinja2's own answers (tests/golden/jinja_cases.json), then marks, limits and errors.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "text/jinja/template.hpp"

namespace motley::jinja {
namespace {

using Json = nlohmann::ordered_json;

// 2024-07-26 12:34:56 UTC, the hour that tools/golden/jinja.py uses.
constexpr int64_t kNow = 1721997296;

Result<MarkedText> render(std::string_view source, const Json& variables, const Limits& limits = {}) {
  auto program = Template::create(source);
  if (!program.ok()) return program.error();
  std::vector<Variable> list;
  for (const auto& [name, value] : variables.items()) list.push_back({name, &value});
  return (*program)->render(list, kNow, limits);
}

std::string message_of(const Result<MarkedText>& result) { return result.ok() ? "no error" : result.error().message(); }

// "[trusted]untrusted[trusted]": brackets around what the template's author wrote.
std::string shown(std::string_view source, const Json& variables) {
  auto text = render(source, variables);
  if (!text.ok()) return "error: " + text.error().message();
  std::string out;
  size_t begin = 0;
  for (const MarkedText::Run& run : text->runs()) {
    std::string part = text->bytes().substr(begin, run.end - begin);
    out += run.trusted ? "[" + part + "]" : part;
    begin = run.end;
  }
  return out;
}

class Golden : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { setenv("TZ", "UTC", 1); }
  static const Json& cases() {
    static const Json kCases = Json::parse(std::ifstream(MOTLEY_SOURCE_DIR "/tests/golden/jinja_cases.json"));
    return kCases;
  }
};

TEST_F(Golden, Jinja_EveryCase_RendersAsJinja2) {
  size_t compared = 0;
  for (const Json& c : cases()["cases"]) {
    std::string source = c["template"];
    SCOPED_TRACE(c["name"].get<std::string>() + ": " + source);
    if (source.starts_with("@")) source = cases()["templates"][source.substr(1)];
    const Json& variables =
        c["variables"].is_string() ? cases()["contexts"][c["variables"].get<std::string>()] : c["variables"];
    auto text = render(source, variables);
    ++compared;
    if (c["output"].is_null()) {
      EXPECT_FALSE(text.ok()) << "rendered: " << text->bytes();
    } else {
      EXPECT_EQ(text.ok() ? text->bytes() : text.error().message(), c["output"].get<std::string>());
    }
  }
  EXPECT_GE(compared, 2000u);
}

// --- marks ---

TEST(JinjaMarks, Output_OfVariables_IsUntrusted) {
  EXPECT_EQ(shown("a{{ x }}b", {{"x", "u"}}), "[a]u[b]");
  EXPECT_EQ(shown("{{ 'a' + x + 'b' }}", {{"x", "u"}}), "[a]u[b]");
  EXPECT_EQ(shown("{{ 'a' ~ x ~ 1 }}", {{"x", "u"}}), "[a]u[1]");
}

TEST(JinjaMarks, Operations_OnMixedText_KeepEachCharactersMark) {
  const Json v = {{"x", " u<s>v "}, {"d", {{"k", "w\n"}}}, {"l", {"p", "q"}}};
  EXPECT_EQ(shown("{{ x.strip() }}", v), "u<s>v");
  EXPECT_EQ(shown("{{ x|trim|upper }}", v), "U<S>V");
  EXPECT_EQ(shown("{{ ('<b>' ~ x)[:6] }}", v), "[<b>] u<");
  EXPECT_EQ(shown("{{ ('ab' ~ x)[::-1] }}", v), " v>s<u [ba]");
  EXPECT_EQ(shown("{{ x.replace('<s>', '</s>') }}", v), " u[</s>]v ");
  EXPECT_EQ(shown("{{ '<a>'.replace('a', d.k) }}", v), "[<]w\n[>]");
  EXPECT_EQ(shown("{{ l|join('<s>') }}", v), "p[<s>]q");
  EXPECT_EQ(shown("{{ '<s>'.join(l) }}", v), "p[<s>]q");
  EXPECT_EQ(shown("{{ ('<s>' ~ x).split('<s>')|last }}", v), "v ");
  EXPECT_EQ(shown("{{ d|tojson }}", v), "[{\"]k[\": \"]w\\n[\"}]");
  EXPECT_EQ(shown("{{ l }}", v), "[[']p[', ']q[']]");
  EXPECT_EQ(shown("{{ '%s|%s' % ('a', l[0]) }}", v), "[a|]p");
  EXPECT_EQ(shown("{{ '{}<s>'.format(l[0]) }}", v), "p[<s>]");
  EXPECT_EQ(shown("{{ l[0].format('x') ~ l[0]|center(3) }}", v), "p[ ]p[ ]");
  EXPECT_EQ(shown("{{ d.k|indent(2, true) }}|", v), "[  ]w[\n|]");
  EXPECT_EQ(shown("{{ x|e }}", v), " u&lt;s&gt;v ");
  EXPECT_EQ(shown("{% set y %}a{{ l[0] }}{% endset %}{{ y }}", v), "[a]p");
  EXPECT_EQ(shown("{% macro m(a) %}<{{ a }}>{% endmacro %}{{ m(l[1]) }}", v), "[<]q[>]");
  EXPECT_EQ(shown("{% filter upper %}a{{ l[0] }}{% endfilter %}", v), "[A]P");
  EXPECT_EQ(shown("{{ x|list|first }}{{ x[1] }}{% for c in 'a' ~ l[0] %}{{ c }}{% endfor %}", v), " u[a]p");
  EXPECT_EQ(shown("{{ strftime_now(l[0]) }}", v), "p");
  EXPECT_EQ(shown("{{ '{}\t<'.format(l[0]).expandtabs(4) }}", v), "p[   <]");
  EXPECT_EQ(shown("{{ '<{a}>'.format_map({'a': l[1]}) }}", v), "[<]q[>]");
  EXPECT_EQ(shown("{{ {'<s>': l[0]}|urlencode }}", v), "[%3Cs%3E=]p");
  EXPECT_EQ(shown("{% for i in l recursive %}<{{ i }}{{ loop(l) if loop.depth0 == 0 }}{% endfor %}", v),
            "[<]p[<]p[<]q[<]q[<]p[<]q");
  EXPECT_EQ(shown("{% generation %}<{{ l[0] }}>{% endgeneration %}", v), "[<]p[>]");
}

TEST(JinjaMarks, DictKeys_OfVariables_StayUntrustedThroughKeywords) {
  const Json v = {{"d", {{"<s>", "x"}}}};
  EXPECT_EQ(shown("{% for k in dict(**d) %}{{ k }}{% endfor %}", v), "<s>");
  EXPECT_EQ(shown("{% macro m() %}{% for k in kwargs %}{{ k }}{% endfor %}{% endmacro %}{{ m(**d) }}", v), "<s>");
}

TEST(JinjaMarks, Role_OfAWellKnownWord_IsTrusted) {
  EXPECT_EQ(shown("<{{ m.role }}>", {{"m", {{"role", "user"}}}}), "[<user>]");
  EXPECT_EQ(shown("<{{ m.role }}>", {{"m", {{"role", "user|>"}}}}), "[<]user|>[>]");
}

// --- errors ---

TEST(JinjaErrors, Parse_Error_NamesLineAndColumn) {
  EXPECT_EQ(message_of(render("a\n{{ 1 + }}", Json::object())),
            "chat template, line 2, column 8: unexpected end of the expression");
  EXPECT_EQ(message_of(render("{% include 'x' %}", Json::object())),
            "chat template, line 1, column 4: tag 'include' is unknown here or not supported in a chat template");
  EXPECT_EQ(message_of(render("{% if x %}", Json::object())),
            "chat template, line 1, column 11: unexpected end of template; a tag is missing its 'endif'");
  EXPECT_EQ(message_of(render("{{ [a 'b\n\t'] }}", Json::object())),
            "chat template, line 1, column 7: expected ',', got 'b\\x0a\\x09'");
}

// Which of these Jinja2 3.1 compiles.
TEST(JinjaErrors, Create_UnknownNames_RefusedWhereJinja2Refuses) {
  for (const char* refused :
       {"{{ x|nope }}", "{{ x is nope }}", "{{ x and x|nope }}", "{{ f(a=x|nope) }}", "{{ {'a': x|nope} }}",
        "{% if x %}{% for i in x %}{{ i|nope }}{% endfor %}{% endif %}",
        "{% if x %}{% for i in x if i|nope %}{% endfor %}{% endif %}",
        "{% if x %}{% for i in x %}{% else %}{{ x|nope }}{% endfor %}{% endif %}",
        "{% if x %}{% set y|nope %}{% endset %}{% endif %}", "{% if x %}{% filter nope %}{% endfilter %}{% endif %}",
        "{% if x %}{% with a = x %}{{ x|nope }}{% endwith %}{% endif %}",
        "{% if x %}{% macro m(a=x|nope) %}{% endmacro %}{% endif %}",
        "{% if x %}{% call m() %}{{ x|nope }}{% endcall %}{% endif %}"}) {
    auto made = Template::create(refused);
    ASSERT_FALSE(made.ok()) << refused;
    EXPECT_NE(made.error().message().find("named 'nope'"), std::string::npos) << made.error().message();
  }
  for (const char* taken :
       {"{% if x %}{{ x|nope }}{% endif %}", "{% if x|nope %}{% elif x is nope %}{% else %}{{ x|nope }}{% endif %}",
        "{{ x|nope if x else 1 }}", "{% if x %}{% for i in x|nope %}{% endfor %}{% endif %}",
        "{% if x %}{% set y = x|nope %}{% endif %}", "{% if x %}{% with a = x|nope %}{% endwith %}{% endif %}",
        "{% if x %}{% call m(x|nope) %}{% endcall %}{% endif %}",
        "{% for i in x %}{% if i %}{{ i|nope }}{% endif %}{% endfor %}", "{{ x|map('nope') }}"}) {
    EXPECT_TRUE(Template::create(taken).ok()) << taken;
  }
}

TEST(JinjaErrors, Render_Error_NamesLine) {
  EXPECT_EQ(message_of(render("\n\n{{ a.b.c }}", {{"a", Json::object()}})),
            "chat template, line 3: 'dict object' has no attribute 'b'");
  EXPECT_EQ(message_of(render("\n{{ raise_exception('no ' ~ 1) }}", Json::object())), "chat template, line 2: no 1");
  EXPECT_EQ(message_of(render("{{ [].append(1) }}", Json::object())),
            "chat template, line 1: access to attribute 'append' of 'list' object is unsafe.");
}

TEST(JinjaErrors, Create_InvalidUtf8_Refused) {
  EXPECT_FALSE(Template::create("a\xff").ok());
  EXPECT_FALSE(render("{{ x }}", {{"x", "a\xff"}}).ok());
}

// --- limits ---

TEST(JinjaLimits, Hostile_Templates_AreRefusedNotObeyed) {
  const std::string deep(100000, '(');
  std::string sum = "{{ 1", chain = "{{ x", blocks;
  for (int i = 0; i < 5000; ++i) {
    sum += "+1";
    chain += ".a";
    blocks += "{% if x %}";
  }
  const std::string sources[] = {
      "{{ " + deep + " }}",
      sum + " }}",
      chain + " }}",
      blocks,
      "{{ 'a' * 10000000000 }}",
      "{{ [1] * 10000000000 }}",
      "{{ range(100001) }}",
      "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
      "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
      "{% for i in [1] recursive %}{{ loop([i]) }}{% endfor %}",
      "{{ '\t'.expandtabs(100000000) }}",
      "{{ '{:{w}}'.format('a', w=100000000) }}",
      "{{ '%*d' % (100000000, 1) }}",
      "{% set n = namespace(x=[]) %}{% for i in range(1000) %}{% set n.x = [n.x] %}{% endfor %}",
      "{% set n = namespace(x=[1]) %}{% for i in range(100) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
      "{% set n = namespace(x='a') %}{% for i in range(100) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
      "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x.replace('a', n.x) %}{% endfor %}",
      "{{ '%10000000s' % 'a' }}",
      "{{ '{:10000000}'.format('a') }}",
      "{{ 'a'|center(100000000) }}",
      "{{ [1]|batch(100000000, 0)|list }}",
      "{{ [1]|slice(100000000)|list }}",
      "{{ [1]|tojson(indent=100000000) }}",
      "{{ 'a\nb'|indent(100000000) }}",
      "{% set n = namespace() %}{% set n.x = n %}{{ n }}",
      "{{ 2 ** 64 }}",
      "{{ -9223372036854775807 - 2 }}",
      "{{ (-9223372036854775807 - 1) // -1 }}",
  };
  for (const std::string& source : sources) {
    auto text = render(source, {{"x", Json::object()}});
    EXPECT_FALSE(text.ok()) << source.substr(0, 80);
  }
}

TEST(JinjaLimits, Steps_AreCounted) {
  EXPECT_TRUE(render("{% for i in range(100) %}x{% endfor %}", Json::object(), {.steps = 2000}).ok());
  EXPECT_EQ(message_of(render("{% for i in range(100) %}x{% endfor %}", Json::object(), {.steps = 200})),
            "chat template, line 1: more than 200 steps executed");
}

TEST(JinjaLimits, Output_LongerThanAllowed_Refused) {
  EXPECT_FALSE(
      render("{% for i in range(100) %}{{ 'abcdefghij' }}{% endfor %}", Json::object(), {.text_bytes = 999}).ok());
  EXPECT_TRUE(
      render("{% for i in range(100) %}{{ 'abcdefghij' }}{% endfor %}", Json::object(), {.text_bytes = 1000}).ok());
}

TEST(JinjaTemplate, LongConversation_StaysWithinTheBudget) {
  Json messages = Json::array();
  for (int i = 0; i < 2000; ++i)
    messages.push_back({{"role", i % 2 ? "assistant" : "user"}, {"content", std::string(1000, 'x')}});
  auto text = render("{% for m in messages %}{{ '<|' + m.role + '|>' + m['content']|trim + '\n' }}{% endfor %}",
                     {{"messages", messages}});
  ASSERT_TRUE(text.ok()) << text.error().message();
  EXPECT_GT(text->size(), 2000u * 1000);
}

TEST(JinjaTemplate, IteratesOver_FindsLoopsOverAnAttribute) {
  EXPECT_TRUE((*Template::create("{% for m in ms %}{% for p in m.content %}{% endfor %}{% endfor %}"))
                  ->iterates_over("content"));
  EXPECT_TRUE((*Template::create("{% set c = m['content'] %}{% for p in c %}{% endfor %}"))->iterates_over("content"));
  EXPECT_TRUE((*Template::create("{% set c = m.get('content') or [] %}{% for p in c %}{% endfor %}"))
                  ->iterates_over("content"));
  EXPECT_TRUE((*Template::create("{% macro f(content) %}{% for p in content %}{% endfor %}{% endmacro %}"))
                  ->iterates_over("content"));
  EXPECT_FALSE((*Template::create("{% for m in ms %}{{ m.content }}{% endfor %}"))->iterates_over("content"));
}

}  // namespace
}  // namespace motley::jinja
