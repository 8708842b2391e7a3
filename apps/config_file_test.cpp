#include "config_file.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace motley::apps {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

std::string repeated(std::string_view text, size_t times) {
  std::string out;
  for (size_t i = 0; i < times; ++i) out += text;
  return out;
}

std::string refusal(std::string_view text) {
  const auto entries = parse_config(text, "f.toml");
  return entries.ok() ? "" : entries.error().message();
}

TEST(ParseConfig, PlainValuesAndLists_GiveTextsWithTheirLines) {
  const auto entries = parse_config("# comment\nport = 80\nmax_num_seqs = 4\nstop = [\n \"a\", 'b']\nx = true\n", "f");
  ASSERT_TRUE(entries.ok()) << entries.error().message();
  ASSERT_EQ(entries->size(), 4u);
  EXPECT_EQ((*entries)[0].name, "max-num-seqs");
  EXPECT_EQ((*entries)[0].line, 3u);
  EXPECT_THAT((*entries)[0].values, ElementsAre("4"));
  EXPECT_EQ((*entries)[1].name, "port");
  EXPECT_THAT((*entries)[2].values, ElementsAre("a", "b"));
  EXPECT_THAT((*entries)[3].values, ElementsAre("true"));
}

TEST(ParseConfig, WhatIsNoOption_IsRefusedWithItsLine) {
  EXPECT_THAT(refusal("\n[serve]\nport = 1\n"), HasSubstr("f.toml:2: serve is not a plain value"));
  EXPECT_THAT(refusal("a.b = 1"), HasSubstr("f.toml:1: a is not a plain value"));
  EXPECT_THAT(refusal("a = [[1]]"), HasSubstr("f.toml:1: a holds something that is not a plain value"));
  EXPECT_THAT(refusal("a = []"), HasSubstr("f.toml:1: a is an empty list"));
  EXPECT_THAT(refusal("a-b = 1\nc = 1\na_b = 2"), HasSubstr("f.toml:3: a-b is given twice"));
  EXPECT_THAT(refusal("\"two\\nlines\" = 1"), HasSubstr("f.toml:1: a key is not the name of an option"));
  EXPECT_THAT(refusal("a = \n"), HasSubstr("f.toml:1: "));
  EXPECT_THAT(refusal("a = n\n"), AllOf(HasSubstr("expected 'nan'"), Not(HasSubstr("\n"))));
}

TEST(ParseConfig, LettersBeyondAscii_AreTextInQuotesAlone) {
  const auto entries = parse_config("a = \"\u00e9\u03a8\" # \u00e9\nb = '\u0100'\n", "f");
  ASSERT_TRUE(entries.ok()) << entries.error().message();
  EXPECT_THAT((*entries)[0].values, ElementsAre("\u00e9\u03a8"));
  EXPECT_THAT(refusal("a = \u00e9\n"), HasSubstr("f.toml:1: "));
  EXPECT_THAT(refusal("a = [\u03a8]\n"), HasSubstr("f.toml:1: "));
  EXPECT_THAT(refusal("\u0100 = 1\n"), HasSubstr("f.toml:1: "));
}

TEST(ParseConfig, LongLine_IsRefusedBeforeItIsParsed) {
  const std::string dots = repeated("a.", kConfigLineBytesMax);
  EXPECT_EQ(refusal("x = 1\n" + dots + "b = 1\n"), "f.toml:2: the line has more than 4096 bytes");
}

// The deepest tables that the limits allow: a header, a key below it, and a key in each table that a list may hold.
TEST(ParseConfig, DeepestNesting_IsRefusedAndSurvived) {
  const std::string dots = repeated("a.", kConfigLineBytesMax / 2 - 8);
  const std::string header = "[" + dots + "b]\n" + dots + "b = ";
  EXPECT_THAT(refusal(header + "1\n"), HasSubstr("a is not a plain value"));
  EXPECT_THAT(refusal(header + "[\n{" + dots + "b = 1}]\n"), HasSubstr("a is not a plain value"));
  EXPECT_THAT(refusal(header + "[\n{" + dots + "b = [\n{" + dots + "b = 1}]}]\n"), HasSubstr("nested"));
  EXPECT_THAT(refusal("a = " + repeated("[", 2000) + repeated("]", 2000)), HasSubstr("nested"));
}

TEST(ReadConfigFile, Missing_NamesTheFile) {
  const auto entries = read_config_file("/nonexistent/motley.toml");
  ASSERT_FALSE(entries.ok());
  EXPECT_THAT(entries.error().message(), AllOf(HasSubstr("/nonexistent/motley.toml"), Not(HasSubstr("\n"))));
}

}  // namespace
}  // namespace motley::apps
