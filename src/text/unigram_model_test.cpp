#include "text/unigram_model.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace motley {
namespace {

using Ids = std::vector<TokenId>;

struct Vocabulary {
  std::vector<std::string> pieces = {"<unk>"};
  std::vector<int32_t> types = {2};
  std::vector<double> scores = {0};
  TokenTable table;

  void add(const std::string& piece, double score) {
    if (std::find(pieces.begin(), pieces.end(), piece) != pieces.end()) return;
    pieces.push_back(piece);
    types.push_back(1);
    scores.push_back(score);
  }
  Result<std::unique_ptr<UnigramModel>> create() {
    const std::vector<std::string_view> views(pieces.begin(), pieces.end());
    RETURN_IF_ERROR(table.fill(views, types, spell_spaces));
    UnigramModel::Rules rules;
    rules.unknown = 0;
    return UnigramModel::create(table, scores, rules);
  }
};

Ids encode(const UnigramModel& model, std::string_view word) {
  WordModel::Scratch scratch;
  Ids ids;
  model.encode(word, scratch, ids);
  return ids;
}

// The best sum over all cuts of `word` into tokens and unknown letters.
double best_by_trying(const Vocabulary& v, std::string_view word, double unknown) {
  if (word.empty()) return 0;
  double best = -INFINITY;
  bool letter_known = false;
  for (size_t id = 1; id < v.pieces.size(); ++id) {
    if (!word.starts_with(v.pieces[id])) continue;
    letter_known = letter_known || v.pieces[id].size() == 1;
    best = std::max(best, v.scores[id] + best_by_trying(v, word.substr(v.pieces[id].size()), unknown));
  }
  if (!letter_known) best = std::max(best, unknown + best_by_trying(v, word.substr(1), unknown));
  return best;
}

TEST(UnigramModel, RandomVocabularies_ReachTheBestSum) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    std::mt19937_64 random(seed);
    Vocabulary v;
    double lowest = 0;
    for (int i = 0; i < 12; ++i) {
      std::string piece(1 + random() % 3, 'a');
      for (char& c : piece) c = "abcd"[random() % 4];
      v.add(piece, -static_cast<double>(random() % 1000) / 100);
    }
    for (const double score : v.scores) lowest = std::min(lowest, score);
    const auto model = v.create();
    ASSERT_TRUE(model.ok()) << model.error().message();
    for (int round = 0; round < 20; ++round) {
      std::string word(random() % 9, 'a');
      for (char& c : word) c = "abcd"[random() % 4];
      double sum = 0;
      std::string joined;
      for (const TokenId id : encode(**model, word)) {
        sum += v.scores[static_cast<size_t>(id)];
        joined += v.pieces[static_cast<size_t>(id)];
      }
      if (joined.find("<unk>") != joined.npos) continue;
      ASSERT_EQ(joined, word);
      ASSERT_NEAR(sum, best_by_trying(v, word, lowest - 10), 1e-9) << word << " seed " << seed;
    }
  }
}

TEST(UnigramModel, BadScoresAndLongTokens_AreRefused) {
  Vocabulary v;
  v.add("a", NAN);
  EXPECT_FALSE(v.create().ok());
  Vocabulary w;
  w.add(std::string(kSearchedTokenBytesMax + 1, 'a'), -1);
  EXPECT_EQ(w.create().error().code(), MOTLEY_INVALID_ARGUMENT);
}

TEST(UnigramModel, HugeWord_EndsAtItsEnd) {
  Vocabulary v;
  v.add("a", -1);
  v.add("aa", -1.5);
  const auto model = v.create();
  ASSERT_TRUE(model.ok());
  EXPECT_EQ(encode(**model, std::string(kWordBytesMax + 10, 'a')).size(), kWordBytesMax / 2 + 5);
}

}  // namespace
}  // namespace motley
