#include "text/unigram_tokenizer.hpp"

#include <utility>

#include "base/quote.hpp"
#include "base/utf8.hpp"
#include "text/vocabulary.hpp"

namespace motley {

struct UnigramTokenizer::Working final : Scratch {
  std::string normalized;
  WordModel::Scratch words;
};

namespace {

Result<std::optional<Charsmap>> read_charsmap(std::string_view blob) {
  if (blob.empty()) return std::optional<Charsmap>();
  auto charsmap = Charsmap::create(blob);
  if (!charsmap.ok()) return charsmap.error().annotate("tokenizer.ggml.precompiled_charsmap");
  return std::optional(*std::move(charsmap));
}

}  // namespace

Status UnigramTokenizer::check(const VocabularyData& data) {
  RETURN_IF_ERROR(check_vocabulary(data));
  if (data.scores.empty()) {
    return invalid_argument("a vocabulary of the model {} needs tokenizer.ggml.scores, and the file has none",
                            in_quotes(data.model));
  }
  return read_charsmap(data.precompiled_charsmap).error();
}

Result<std::unique_ptr<Tokenizer>> UnigramTokenizer::create(const VocabularyData& data) {
  std::unique_ptr<UnigramTokenizer> made(new UnigramTokenizer());
  RETURN_IF_ERROR(made->take_vocabulary(data, spell_spaces, false));
  made->space_prefix_ = data.add_space_prefix.value_or(true);
  made->strips_leading_space_ = made->space_prefix_;
  made->removes_spaces_ = data.remove_extra_whitespaces.value_or(false);
  ASSIGN_OR_RETURN(made->charsmap_, read_charsmap(data.precompiled_charsmap));
  UnigramModel::Rules rules;
  rules.unknown = data.unknown;
  for (TokenId id = 0; !rules.unknown && made->tokens_.known(id); ++id) {
    if (made->tokens_[id].type == TokenType::kUnknown) rules.unknown = id;
  }
  rules.byte_fallback = true;  // where there are byte tokens
  rules.single_precision = true;
  const std::vector<double> scores(data.scores.begin(), data.scores.end());
  ASSIGN_OR_RETURN(made->model_, UnigramModel::create(made->tokens_, scores, rules));
  return std::unique_ptr<Tokenizer>(std::move(made));
}

std::unique_ptr<VocabularyTokenizer::Scratch> UnigramTokenizer::make_scratch() const {
  return std::make_unique<Working>();
}

void UnigramTokenizer::normalize(std::string_view text, Place place, std::string& out) const {
  const bool begins = place != Place::kInText;
  bool skip_spaces = removes_spaces_ && begins;
  bool prefix = space_prefix_ && begins;
  while (!text.empty()) {
    Charsmap::Match match{utf8_step(text).bytes, {}};
    match.with = text.substr(0, match.bytes);
    if (charsmap_) match = charsmap_->longest(text).value_or(match);
    text.remove_prefix(match.bytes);
    for (const char c : match.with) {
      if (c == ' ' && skip_spaces) continue;
      if (std::exchange(prefix, false)) out += kSpaceMark;
      if (c == ' ') {
        out += kSpaceMark;
      } else {
        out += c;
      }
      skip_spaces = removes_spaces_ && c == ' ';
    }
  }
  while (removes_spaces_ && out.ends_with(kSpaceMark)) out.resize(out.size() - kSpaceMark.size());
}

void UnigramTokenizer::encode_text(std::string_view text, Place place, Scratch& scratch,
                                   std::vector<TokenId>& out) const {
  Working& working = static_cast<Working&>(scratch);
  working.normalized.clear();
  normalize(text, place, working.normalized);
  model_->encode(working.normalized, working.words, out);
}

}  // namespace motley
