#include "text/bpe_tokenizer.hpp"

#include "base/quote.hpp"
#include "base/utf8.hpp"
#include "text/normalize.hpp"
#include "text/unicode_class.hpp"
#include "text/vocabulary.hpp"

namespace motley {

struct BpeTokenizer::Working final : Scratch {
  std::string normalized;
  PreTokenizeStep::Scratch pieces;
  WordModel::Scratch words;
};

Status BpeTokenizer::check(const VocabularyData& data) {
  RETURN_IF_ERROR(check_vocabulary(data));
  if (find_pre_tokenizer(data.pre) != nullptr) return ok_status();
  return error(MOTLEY_UNIMPLEMENTED,
               "pre-tokeniser {} (tokenizer.ggml.pre) is not known; known are {}: choose another model or convert it "
               "again with one of these",
               in_quotes(data.pre), known_pre_tokenizers());
}

Result<std::unique_ptr<Tokenizer>> BpeTokenizer::create(const VocabularyData& data) {
  const PreTokenizer* pre = find_pre_tokenizer(data.pre);
  std::unique_ptr<BpeTokenizer> made(new BpeTokenizer());
  made->pre_ = pre;
  if (pre->next_word == nullptr) {
    ASSIGN_OR_RETURN(made->steps_, PreTokenizeSteps::create(pre->patterns));
  }
  RETURN_IF_ERROR(made->take_vocabulary(data, spell_byte_alphabet, pre->add_bos));
  ASSIGN_OR_RETURN(const std::vector<MergePair> pairs, split_merges(data.merges));
  ASSIGN_OR_RETURN(MergeTable merges, merges_of_pairs(made->tokens_, pairs));
  BpeModel::Rules rules;
  rules.ignore_merges = pre->ignore_merges;
  ASSIGN_OR_RETURN(made->model_, BpeModel::create(made->tokens_, std::move(merges), rules));
  return std::unique_ptr<Tokenizer>(std::move(made));
}

std::unique_ptr<VocabularyTokenizer::Scratch> BpeTokenizer::make_scratch() const { return std::make_unique<Working>(); }

void BpeTokenizer::encode_text(std::string_view text, Place place, Scratch& scratch, std::vector<TokenId>& out) const {
  Working& working = static_cast<Working&>(scratch);
  if (pre_->nfc && !surely_nfc(text)) {
    working.normalized = to_nfc(text);
    text = working.normalized;
  }
  if (pre_->next_word == nullptr) {
    steps_.apply(text, place, working.pieces);
    for (const TextPiece& piece : working.pieces.pieces) model_->encode(piece.text, working.words, out);
    return;
  }
  if (!pre_->digits_apart) return encode_words(text, working, out);
  const UnicodeClasses& classes = UnicodeClasses::instance();
  size_t start = 0;
  for (size_t at = 0; at < text.size();) {
    const auto byte = static_cast<uint8_t>(text[at]);
    const Utf8Step step = byte < 0x80 ? Utf8Step{Utf8Step::kCharacter, 1, byte} : utf8_step(text.substr(at));
    const size_t next = at + step.bytes;
    if (step.kind == Utf8Step::kCharacter && classes.of(step.code_point) == CharClass::kNumber) {
      encode_words(text.substr(start, at - start), working, out);
      encode_words(text.substr(at, next - at), working, out);
      start = next;
    }
    at = next;
  }
  encode_words(text.substr(start), working, out);
}

void BpeTokenizer::encode_words(std::string_view text, Working& working, std::vector<TokenId>& out) const {
  for (size_t at = 0; at < text.size();) {
    const size_t end = pre_->word_end(text, at);
    model_->encode(text.substr(at, end - at), working.words, out);
    at = end;
  }
}

}  // namespace motley
