#include "text/special_matcher.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>

namespace motley {
namespace {

TEST(SpecialMatcher, TokensThatShareABeginning_LongestWins) {
  const SpecialMatcher matcher({{"<a>", 1}, {"<a>b", 2}, {"<a>bcd", 3}, {"x", 4}});
  const auto at = [&](std::string_view text) { return matcher.find(text, 0); };
  EXPECT_EQ(at("..<a>bc")->id, 2);
  EXPECT_EQ(at("..<a>bc")->begin, 2u);
  EXPECT_EQ(at("..<a>bc")->end, 6u);
  EXPECT_EQ(at("<a>bcd")->id, 3);
  EXPECT_EQ(at("<a>")->id, 1);
  EXPECT_EQ(at("x<a>")->id, 4);
  EXPECT_FALSE(at("<a"));
  EXPECT_FALSE(at(""));
  EXPECT_FALSE(SpecialMatcher().find("<a>", 0));
}

TEST(SpecialMatcher, RandomTokens_FindWhatASearchOneByOneFinds) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    std::mt19937_64 random(seed);
    const auto word = [&](size_t size_max) {
      std::string out(1 + random() % size_max, '\0');
      for (char& c : out) c = static_cast<char>("ab\xFF"[random() % 3]);
      return out;
    };
    std::vector<std::string> spellings;
    for (size_t i = 0; i < 1 + random() % 6; ++i) spellings.push_back(word(4));
    std::sort(spellings.begin(), spellings.end());
    spellings.erase(std::unique(spellings.begin(), spellings.end()), spellings.end());
    std::shuffle(spellings.begin(), spellings.end(), random);
    std::vector<std::pair<std::string_view, TokenId>> tokens;
    for (const std::string& s : spellings) tokens.emplace_back(s, static_cast<TokenId>(tokens.size()));
    const SpecialMatcher matcher(tokens);
    const std::string text = word(12);
    size_t begin = text.size(), size = 0;
    for (size_t at = 0; at < text.size() && size == 0; ++at) {
      for (const std::string& s : spellings) {
        if (text.compare(at, s.size(), s) == 0 && s.size() > size) begin = at, size = s.size();
      }
    }
    const auto match = matcher.find(text, 0);
    ASSERT_EQ(match.has_value(), size > 0) << "seed " << seed;
    if (!match) continue;
    ASSERT_EQ(std::pair(match->begin, match->end), std::pair(begin, begin + size)) << "seed " << seed;
  }
}

}  // namespace
}  // namespace motley
