#include "text/charsmap.hpp"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "text/charsmap_testing.hpp"

namespace motley {
namespace {

const std::map<std::string, std::string> kRules = {
    {"f", "F"}, {"fo", "of"}, {"\u00A0", " "}, {"\t", " "}, {"e\u0301", "\u00E9"}, {"\r", "\n"}, {"\u200B", ""}};

Charsmap made(const std::string& blob) {
  auto charsmap = Charsmap::create(blob);
  CHECK(charsmap.ok(), "{}", charsmap.error().message());
  return *std::move(charsmap);
}

TEST(Charsmap, LongestAndShortest_AreFound) {
  const Charsmap charsmap = made(charsmap_of(kRules));
  EXPECT_EQ(charsmap.longest("foo")->with, "of");
  EXPECT_EQ(charsmap.longest("foo")->bytes, 2u);
  EXPECT_EQ(charsmap.longest("fa")->with, "F");
  EXPECT_EQ(charsmap.shortest("foo")->with, "F");
  EXPECT_EQ(charsmap.shortest("foo")->bytes, 1u);
  EXPECT_EQ(charsmap.longest("\u200Bx")->with, "");
  EXPECT_FALSE(charsmap.longest("x").has_value());
  EXPECT_FALSE(charsmap.longest("e").has_value());
  EXPECT_FALSE(charsmap.longest("").has_value());
  EXPECT_FALSE(charsmap.longest(std::string_view("\0f", 2)).has_value());
}

// A short grapheme goes as a whole; of a longer one each character is looked for.
TEST(Charsmap, Graphemes_AreReplacedAsTheReferenceDoes) {
  const Charsmap charsmap = made(charsmap_of(kRules));
  EXPECT_EQ(charsmap.replaced_by_graphemes("foo e\u0301\t"), "Foo \u00E9 ");
  EXPECT_EQ(charsmap.replaced_by_graphemes("\r\nx"), "\nx");
  EXPECT_EQ(charsmap.replaced_by_graphemes("\u00A0\u0301"), " ");
  EXPECT_EQ(charsmap.replaced_by_graphemes("\u00A0\u0301\u0301"), " \u0301\u0301");
  EXPECT_EQ(charsmap.replaced_by_graphemes("a\xFF\tf\xC3"), "a\xFF F\xC3");
}

TEST(Charsmap, WhatIsNone_IsRefused) {
  const std::string good = charsmap_of(kRules);
  const std::pair<std::string, const char*> cases[] = {{"", "too short"},
                                                       {"\x01", "too short"},
                                                       {std::string(8, '\0'), "0 of 8 bytes"},
                                                       {std::string("\x06\0\0\0abcdef", 10), "6 of 10 bytes"},
                                                       {good.substr(0, 100), "of 100 bytes"},
                                                       {good + "\xFF", "not UTF-8"}};
  for (const auto& [blob, word] : cases) {
    const auto charsmap = Charsmap::create(blob);
    ASSERT_FALSE(charsmap.ok()) << word;
    EXPECT_NE(charsmap.error().message().find(word), std::string::npos) << charsmap.error().message();
  }
}

TEST(Charsmap, GrowthIsBounded) {
  const Charsmap charsmap = made(charsmap_of({{"a", std::string(64, 'x')}, {"b", std::string(65, 'x')}}));
  EXPECT_EQ(charsmap.longest("a")->with.size(), 64u);
  EXPECT_FALSE(charsmap.longest("b").has_value());
  EXPECT_EQ(charsmap.replaced_by_graphemes("b"), "b");
}

// Damage can make a trie cyclic: a walk ends whatever it finds.
TEST(Charsmap, LongSequences_AreNotFollowed) {
  const Charsmap charsmap = made(charsmap_of({{std::string(64, 'a'), "x"}, {std::string(65, 'b'), "y"}}));
  EXPECT_EQ(charsmap.longest(std::string(100, 'a'))->bytes, 64u);
  EXPECT_FALSE(charsmap.longest(std::string(100, 'b')).has_value());
}

// Under AddressSanitizer: a trie of noise leads nowhere outside of it.
TEST(Charsmap, DamagedTries_StayInBounds) {
  std::mt19937 random(7);
  std::string blob = charsmap_of(kRules);
  const size_t trie_end = blob.size() - 64;
  size_t found = 0;
  for (int round = 0; round < 2000; ++round) {
    std::string damaged = blob;
    for (int i = 0; i < 64; ++i) damaged[4 + random() % (trie_end - 4)] = static_cast<char>(random());
    for (size_t i = 4; i < 8; ++i) damaged[i] = static_cast<char>(random());
    const auto charsmap = Charsmap::create(damaged);
    if (!charsmap.ok()) continue;
    found += charsmap->replaced_by_graphemes("foo e\u0301\t\r\n").size();
    found += charsmap->longest("fo\u00A0").has_value() ? 1 : 0;
  }
  EXPECT_GT(found, 0u);
}

}  // namespace
}  // namespace motley
