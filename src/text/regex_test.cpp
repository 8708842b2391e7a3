#include "text/regex.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace motley {
namespace {

std::vector<std::string> matches(std::string_view pattern, std::string_view text) {
  const auto regex = Regex::create(pattern);
  CHECK(regex.ok(), "{}", regex.error().message());
  Regex::Scratch scratch;
  std::vector<std::string> found;
  for (size_t at = 0; at <= text.size();) {
    const auto match = (*regex)->find(text, at, scratch);
    if (!match) break;
    found.emplace_back(text.substr(match->first, match->second - match->first));
    at = match->second == match->first ? match->second + 1 : match->second;
  }
  return found;
}

using Found = std::vector<std::string>;

TEST(Regex, ClassesMeanWhatTheyMeanToOniguruma) {
  EXPECT_EQ(matches("\\s", "a\u0085b\u00A0c\u180E"), (Found{"\u0085", "\u00A0"}));
  EXPECT_EQ(matches("[\\s]+", "a \u0085b"), Found{" \u0085"});
  EXPECT_EQ(matches("\\S+", "ab\u0085c"), (Found{"ab", "c"}));
  EXPECT_EQ(matches("\\w+", "e\u0301_1 \u2153 \u00BD \u24B6"), (Found{"e\u0301_1", "\u00BD", "\u24B6"}));
  EXPECT_EQ(matches("[^\\w]+", "a+-b"), Found{"+-"});
  EXPECT_EQ(matches("a$", "a\nba"), (Found{"a", "a"}));
  EXPECT_EQ(matches("[[:upper:]]+", "aBCd"), Found{"BC"});
  EXPECT_EQ(matches("[]a]+", "x]a"), Found{"]a"});
  EXPECT_EQ(matches("\\p{N}{1,3}+", "12345 6"), (Found{"12345", "6"}));
  EXPECT_EQ(matches("\\p{N}{1,3}", "12345"), (Found{"123", "45"}));
  EXPECT_EQ(matches("a{,2}b", "aaab"), Found{"aab"});
  EXPECT_EQ(matches("\\x{E9}+\\h", "\u00E9\u00E9f"), Found{"\u00E9\u00E9f"});
  EXPECT_EQ(matches("(?i:'S)|\\p{L}++", "it's"), (Found{"it", "'s"}));
}

TEST(Regex, BytesThatAreNoUtf8_MatchNothing) {
  EXPECT_EQ(matches("[^a]", "a\xFF\u20AC\xE2\x82"), Found{"\u20AC"});
  EXPECT_EQ(matches(".", "\xFF\xFE"), Found{});
}

TEST(Regex, WhatCannotBeMeant_IsRefused) {
  for (const char* pattern : {"(", "[a[b]]", "[a&&b]", "[\\S]", "[a", "\\C", "[[:alpha:", "a{2,1}", "a{2}+", "(?m)a"}) {
    const auto regex = Regex::create(pattern);
    ASSERT_FALSE(regex.ok()) << pattern;
    EXPECT_EQ(regex.error().code(), MOTLEY_INVALID_ARGUMENT);
    EXPECT_NE(regex.error().message().find("the expression '"), std::string::npos) << regex.error().message();
  }
  EXPECT_FALSE(Regex::create(std::string(1 << 20, 'a')).ok());
  EXPECT_FALSE(Regex::create(std::string(100, '(') + std::string(100, ')')).ok());
}

TEST(Regex, SearchBeyondTheLimit_FindsNothing) { EXPECT_EQ(matches("(?:a+)+b", std::string(200, 'a')), Found{}); }

}  // namespace
}  // namespace motley
