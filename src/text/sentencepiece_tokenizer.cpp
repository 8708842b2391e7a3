#include "text/sentencepiece_tokenizer.hpp"

#include "base/quote.hpp"
#include "text/bpe_model.hpp"
#include "text/vocabulary.hpp"

namespace motley {

struct SentencePieceTokenizer::Working final : Scratch {
  std::string marked;  // the text with marks for spaces
  WordModel::Scratch words;
};

Status SentencePieceTokenizer::check(const VocabularyData& data) {
  RETURN_IF_ERROR(check_vocabulary(data));
  if (!data.scores.empty()) return ok_status();
  return invalid_argument("a vocabulary of the model {} needs tokenizer.ggml.scores, and the file has none",
                          in_quotes(data.model));
}

Result<std::unique_ptr<Tokenizer>> SentencePieceTokenizer::create(const VocabularyData& data) {
  std::unique_ptr<SentencePieceTokenizer> made(new SentencePieceTokenizer());
  RETURN_IF_ERROR(made->take_vocabulary(data, spell_spaces, true));
  made->space_prefix_ = data.add_space_prefix.value_or(true);
  made->strips_leading_space_ = made->space_prefix_;
  ASSIGN_OR_RETURN(MergeTable merges, merges_of_scores(made->tokens_, data.scores));
  BpeModel::Rules rules;
  rules.of_bytes = false;
  rules.byte_fallback = true;
  rules.unknown = data.unknown;
  rules.fuse_unknown = true;
  ASSIGN_OR_RETURN(made->model_, BpeModel::create(made->tokens_, std::move(merges), rules));
  return std::unique_ptr<Tokenizer>(std::move(made));
}

std::unique_ptr<VocabularyTokenizer::Scratch> SentencePieceTokenizer::make_scratch() const {
  return std::make_unique<Working>();
}

void SentencePieceTokenizer::encode_text(std::string_view text, Place place, Scratch& scratch,
                                         std::vector<TokenId>& out) const {
  Working& working = static_cast<Working&>(scratch);
  std::string& marked = working.marked;
  marked.clear();
  if (space_prefix_ && place != Place::kInText) marked += kSpaceMark;
  for (size_t at = 0; at < text.size();) {
    const size_t space = std::min(text.find(' ', at), text.size());
    marked.append(text.substr(at, space - at));
    if (space < text.size()) marked += kSpaceMark;
    at = space + 1;
  }
  model_->encode(marked, working.words, out);
}

}  // namespace motley
