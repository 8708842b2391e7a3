#include "base/utf8.hpp"

#include <gtest/gtest.h>

#include <string>

namespace motley {
namespace {

std::string replaced(std::string_view bytes) {
  std::string out;
  while (!bytes.empty()) {
    const Utf8Step step = utf8_step(bytes);
    out += step.kind == Utf8Step::kCharacter ? bytes.substr(0, step.bytes) : kReplacementCharacter;
    bytes.remove_prefix(step.bytes);
  }
  return out;
}

TEST(Utf8, CharactersOfEveryLength_AreRead) {
  const std::string_view text = "a\u00E9\u20AC\U0001F600";
  char32_t expected[] = {'a', 0xE9, 0x20AC, 0x1F600};
  size_t at = 0;
  for (const char32_t code_point : expected) {
    const Utf8Step step = utf8_step(text.substr(at));
    ASSERT_EQ(step.kind, Utf8Step::kCharacter);
    EXPECT_EQ(step.code_point, code_point);
    at += step.bytes;
  }
  EXPECT_EQ(at, text.size());
}

// Expected values: Python 3.11, bytes.decode("utf-8", "replace").
TEST(Utf8, BrokenBytes_BecomeAsManyReplacementsAsInPython) {
  const std::string r(kReplacementCharacter);
  const std::pair<std::string_view, std::string> cases[] = {
      {"\x80", r},
      {"\xC0\x80", r + r},
      {"\xC1\xBF", r + r},
      {"\xE0\x80\x80", r + r + r},
      {"\xED\xA0\x80", r + r + r},
      {"\xF0\x80\x80\x80", r + r + r + r},
      {"\xF4\x90\x80\x80", r + r + r + r},
      {"\xF5\x80", r + r},
      {"\xF1\x80"
       "A",
       r + "A"},
      {"\xF1\x80\x80"
       "A",
       r + "A"},
      {"\xE2\x82", r},
      {"\xF0\x9F\x98", r},
      {"\xE2\xE2\x82\xAC", r + "\u20AC"},
      {"\xC3", r},
      {"\xC3(", r + "("},
      {"\xFF\xFE", r + r},
  };
  for (const auto& [bytes, expected] : cases) EXPECT_EQ(replaced(bytes), expected);
}

TEST(Utf8, WholeAndBroken_AreTold) {
  EXPECT_TRUE(utf8_valid(""));
  EXPECT_TRUE(utf8_valid("\U0010FFFF"));
  EXPECT_FALSE(utf8_valid("\xED\xA0\x80"));
  EXPECT_FALSE(utf8_valid("a\xE2\x82"));
}

}  // namespace
}  // namespace motley
