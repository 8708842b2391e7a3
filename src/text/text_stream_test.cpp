#include "text/text_stream.hpp"

#include <gtest/gtest.h>

#include <random>

#include "base/utf8.hpp"
#include "text/vocabulary_testing.hpp"

namespace motley {
namespace {

const std::string kReplaced(kReplacementCharacter);

class TextStreamTest : public testing::Test {
 protected:
  TextStreamTest() {
    TestVocabulary vocabulary = TestVocabulary::bytes();
    control_ = vocabulary.add("<|end|>", 3);
    tokenizer_ = *vocabulary.create();
  }
  // The tokens of `bytes`, one a byte.
  std::vector<TokenId> ids(std::string_view bytes) const { return tokenizer_->encode(bytes, false, false); }
  std::string run(std::string_view bytes, TextStream::Options options) const {
    TextStream stream(*tokenizer_, std::move(options));
    std::string shown;
    for (const TokenId id : ids(bytes)) shown += stream.push(id);
    return shown + stream.finish();
  }
  TokenId control_ = 0;
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(TextStreamTest, CharacterOfFourTokens_ComesWhole) {
  TextStream stream(*tokenizer_, {});
  const auto tokens = ids("\U0001F600!");
  EXPECT_EQ(stream.push(tokens[0]), "");
  EXPECT_EQ(stream.push(tokens[1]), "");
  EXPECT_EQ(stream.push(tokens[2]), "");
  EXPECT_EQ(stream.push(tokens[3]), "\U0001F600");
  EXPECT_EQ(stream.push(tokens[4]), "!");
  EXPECT_EQ(stream.finish(), "");
}

TEST_F(TextStreamTest, BrokenBytes_AreReplacedAsSoonAsKnown) {
  TextStream stream(*tokenizer_, {});
  const auto tokens =
      ids("\xF0\x9F"
          "A\xE2\x82");
  EXPECT_EQ(stream.push(tokens[0]), "");
  EXPECT_EQ(stream.push(tokens[1]), "");
  EXPECT_EQ(stream.push(tokens[2]), kReplaced + "A");
  EXPECT_EQ(stream.push(tokens[3]), "");
  EXPECT_EQ(stream.push(tokens[4]), "");
  EXPECT_EQ(stream.finish(), kReplaced);
}

TEST_F(TextStreamTest, StopAcrossTokens_IsHeldBackAndCut) {
  TextStream stream(*tokenizer_, {{"END"}, false, true});
  std::string shown;
  for (const TokenId id : ids("xEEN")) shown += stream.push(id);
  EXPECT_EQ(shown, "xE");
  EXPECT_FALSE(stream.stopped());
  EXPECT_EQ(stream.push(ids("D")[0]), "");
  EXPECT_TRUE(stream.stopped());
  EXPECT_EQ(stream.stop_match(), "END");
  EXPECT_EQ(stream.push(ids("y")[0]), "");
  EXPECT_EQ(stream.finish(), "");
}

TEST_F(TextStreamTest, StopThatDoesNotComplete_IsShownAtTheEnd) {
  EXPECT_EQ(run("abcEN", {{"END"}, false, true}), "abcEN");
}

TEST_F(TextStreamTest, IncludeStop_ShowsItAndNothingAfter) { EXPECT_EQ(run("abENDc", {{"END"}, true, true}), "abEND"); }

TEST_F(TextStreamTest, SeveralStops_FirstToEndWinsThenTheLongest) {
  EXPECT_EQ(run("xabcd", {{"abcd", "bc"}, false, true}), "xa");
  EXPECT_EQ(run("xabcd", {{"bc", "abc"}, false, true}), "x");
}

TEST_F(TextStreamTest, StopsWithSharedPrefixesAndRepeats_AreFound) {
  EXPECT_EQ(run("aabaabaaabx", {{"aabaaab"}, false, true}), "aab");
  EXPECT_EQ(run("a\u00E9b", {{"\u00E9b"}, false, true}), "a");
}

TEST_F(TextStreamTest, EmptyStop_IsIgnored) { EXPECT_EQ(run("abc", {{""}, false, true}), "abc"); }

TEST_F(TextStreamTest, ReplacementAtTheEnd_CanCompleteAStop) {
  EXPECT_EQ(run("ab\xE2", {{"b" + kReplaced}, false, true}), "a");
}

TEST_F(TextStreamTest, ControlToken_IsShownOnlyWhenAsked) {
  TextStream hidden(*tokenizer_, {});
  EXPECT_EQ(hidden.push(control_), "");
  TextStream shown(*tokenizer_, {{}, false, false});
  EXPECT_EQ(shown.push(control_), "<|end|>");
}

TEST_F(TextStreamTest, StreamsOfOneStopSet_StopEachAtTheirOwn) {
  const std::vector<std::string> stop = {"END", ""};
  TextStream::Options options;
  options.stop = {"E"};  // does not count beside the set
  options.stop_set = std::make_shared<const StopSet>(stop);
  TextStream first(*tokenizer_, options), second(*tokenizer_, options);
  EXPECT_EQ(options.stop_set.use_count(), 3);
  std::string first_shown, second_shown;
  const auto first_ids = ids("aENDx"), second_ids = ids("EEND!");
  for (size_t i = 0; i < first_ids.size(); ++i) {
    first_shown += first.push(first_ids[i]);
    second_shown += second.push(second_ids[i]);
  }
  EXPECT_EQ(first_shown + first.finish(), "a");
  EXPECT_EQ(second_shown + second.finish(), "E");
  EXPECT_EQ(second.stop_match(), "END");
}

// Against the definition over the whole text: replace, then cut where the first match to end begins.
TEST_F(TextStreamTest, RandomBytesAndStops_StreamEqualsWhole) {
  std::mt19937_64 random(11);
  const std::string_view pieces[] = {
      "a", "b", "\xE2", "\x82", "\xAC", "\xF0\x9F", "\u00E9", "\x80", kReplacementCharacter};
  for (int round = 0; round < 5000; ++round) {
    std::string bytes;
    for (size_t i = 0, count = random() % 14; i < count; ++i) bytes += pieces[random() % std::size(pieces)];
    TextStream::Options options;
    options.include_stop_in_output = random() % 2 == 0;
    const std::string_view stop_pieces[] = {"a", "b", "\u20AC", "\u00E9", kReplacementCharacter};
    for (size_t i = 0, count = random() % 4; i < count; ++i) {
      std::string stop;
      for (size_t j = 0, size = 1 + random() % 3; j < size; ++j) stop += stop_pieces[random() % std::size(stop_pieces)];
      options.stop.push_back(stop);
    }
    std::string whole;
    for (std::string_view rest = bytes; !rest.empty();) {
      const Utf8Step step = utf8_step(rest);
      whole += step.kind == Utf8Step::kCharacter ? rest.substr(0, step.bytes) : kReplacementCharacter;
      rest.remove_prefix(step.bytes);
    }
    for (size_t end = 1; end <= whole.size(); ++end) {
      size_t size = 0;
      for (const std::string& stop : options.stop) {
        if (std::string_view(whole).substr(0, end).ends_with(stop)) size = std::max(size, stop.size());
      }
      if (size == 0) continue;
      whole.resize(options.include_stop_in_output ? end : end - size);
      break;
    }
    TextStream stream(*tokenizer_, options);
    std::string shown;
    for (const TokenId id : ids(bytes)) {
      const std::string part = stream.push(id);
      ASSERT_TRUE(utf8_valid(part)) << "round " << round;
      shown += part;
    }
    shown += stream.finish();
    ASSERT_EQ(shown, whole) << "round " << round;
  }
}

TEST_F(TextStreamTest, StopStringWithinMinTokens_DoesNotCount) {
  TextStream::Options options;
  options.stop = {"ab"};
  options.min_tokens = 3;
  TextStream stream(*tokenizer_, options);
  std::string shown;
  for (const TokenId id : ids("abaab")) shown += stream.push(id);
  EXPECT_TRUE(stream.stopped());
  EXPECT_EQ(shown, "aba");  // a match must lie wholly behind the third token
}

TEST_F(TextStreamTest, MinTokensInsideACharacter_StopsCountFromTheNext) {
  TextStream::Options options;
  options.stop = {"\u20AC", "a"};
  options.min_tokens = 2;  // the euro sign's third byte is still to come
  TextStream stream(*tokenizer_, options);
  std::string shown;
  for (const TokenId id : ids("\u20AC\u00E9a")) shown += stream.push(id);
  EXPECT_EQ(shown, "\u20AC\u00E9");
  EXPECT_EQ(stream.stop_match(), "a");
}

}  // namespace
}  // namespace motley
