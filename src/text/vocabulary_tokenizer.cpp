#include "text/vocabulary_tokenizer.hpp"

#include <algorithm>

#include "base/utf8.hpp"
#include "text/unicode_class.hpp"
#include "text/unicode_properties.hpp"
#include "text/vocabulary.hpp"

namespace motley {
namespace {

bool is_space_at(std::string_view text, size_t at, size_t& bytes) {
  const Utf8Step step = utf8_step(text.substr(at));
  bytes = step.bytes;
  return step.kind == Utf8Step::kCharacter && UnicodeClasses::instance().of(step.code_point) == CharClass::kSpace;
}

bool is_word_at(std::string_view text, size_t at) {
  const Utf8Step step = utf8_step(text.substr(at));
  return step.kind == Utf8Step::kCharacter && is_word(step.code_point);
}

// Where the character begins that ends at `end` > from.
size_t character_before(std::string_view text, size_t from, size_t end) {
  size_t at = end - 1;
  while (at > from && end - at < 4 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

}  // namespace

Status VocabularyTokenizer::take_vocabulary(const VocabularyData& data, const TokenTable::Speller& spell,
                                            bool add_bos_default) {
  RETURN_IF_ERROR(tokens_.fill(data.tokens, data.types, spell));
  std::vector<TokenId> end;
  for (const auto& role : {data.eos, data.eot, data.eom}) {
    if (role) end.push_back(*role);
  }
  RETURN_IF_ERROR(take_roles(data.bos, data.eos, end, {}));
  if (data.add_bos.value_or(false) && !data.bos) {
    return invalid_argument("tokenizer.ggml.add_bos_token is set but there is no tokenizer.ggml.bos_token_id");
  }
  if (data.add_eos.value_or(false) && !data.eos) {
    return invalid_argument("tokenizer.ggml.add_eos_token is set but there is no tokenizer.ggml.eos_token_id");
  }
  if (data.add_bos.value_or(add_bos_default) && data.bos) prefix_ = {*data.bos};
  if (data.add_eos.value_or(false)) suffix_ = {*data.eos};
  return ok_status();
}

Status VocabularyTokenizer::take_roles(std::optional<TokenId> bos, std::optional<TokenId> eos,
                                       std::span<const TokenId> end, std::span<const LiteralRule> rules) {
  bos_ = bos;
  eos_ = eos;
  // Many files declare <|im_end|> and its like user-defined. What begins or ends an answer is a control token all the
  // same: users neither write nor see it.
  if (bos) tokens_.promote(*bos);
  end_tokens_.assign(end.begin(), end.end());
  for (const std::string_view name : end_token_names()) {
    const auto id = find(name);
    if (id && is_literal(*id)) end_tokens_.push_back(*id);
  }
  std::sort(end_tokens_.begin(), end_tokens_.end());
  end_tokens_.erase(std::unique(end_tokens_.begin(), end_tokens_.end()), end_tokens_.end());
  for (const TokenId id : end_tokens_) tokens_.promote(id);

  for (const LiteralRule& rule : rules) {
    if (rule.takes_left || rule.takes_right || rule.single_word || rule.normalized) rules_.push_back(rule);
  }
  std::sort(rules_.begin(), rules_.end(), [](const LiteralRule& a, const LiteralRule& b) { return a.id < b.id; });
  LiteralSet::Spellings anyones, all;
  for (TokenId id = 0; tokens_.known(id); ++id) {
    if (!is_literal(id) || piece(id).empty() || rule_of(id).normalized) continue;
    all.emplace_back(piece(id), id);
    if (!is_marker(id)) anyones.emplace_back(piece(id), id);
  }
  literals_ = LiteralSet(std::move(anyones), std::move(all));
  return ok_status();
}

std::vector<TokenId> VocabularyTokenizer::encode(std::string_view text, bool add_special, bool parse_special) const {
  std::vector<TokenId> out;
  if (add_special) out = prefix_;
  encode_between_literals(text, Place::kStart, parse_special, out);
  if (add_special) out.insert(out.end(), suffix_.begin(), suffix_.end());
  return out;
}

std::vector<TokenId> VocabularyTokenizer::encode_more(std::string_view text, Place place, bool parse_special) const {
  std::vector<TokenId> out;
  encode_between_literals(text, place, parse_special, out);
  return out;
}

void VocabularyTokenizer::encode_between_literals(std::string_view text, Place place, bool parse_special,
                                                  std::vector<TokenId>& out) const {
  const auto scratch = make_scratch();
  scratch->trusted = parse_special;
  cut_at_literals(literals_.of(parse_special), text, place, out,
                  [&](std::string_view between, Place where) { encode_text(between, where, *scratch, out); });
}

const LiteralRule& VocabularyTokenizer::rule_of(TokenId id) const {
  static const LiteralRule plain;
  const auto rule =
      std::lower_bound(rules_.begin(), rules_.end(), id, [](const LiteralRule& r, TokenId i) { return r.id < i; });
  return rule != rules_.end() && rule->id == id ? *rule : plain;
}

bool VocabularyTokenizer::apply_rule(const LiteralRule& rule, std::string_view text, size_t from,
                                     SpecialMatcher::Match& match) const {
  size_t bytes = 0;
  if (rule.single_word) {
    if (match.begin > 0 && is_word_at(text, character_before(text, 0, match.begin))) return false;
    if (match.end < text.size() && is_word_at(text, match.end)) return false;
  }
  while (rule.takes_left && match.begin > from) {
    const size_t before = character_before(text, from, match.begin);
    if (!is_space_at(text, before, bytes) || before + bytes != match.begin) break;
    match.begin = before;
  }
  while (rule.takes_right && match.end < text.size() && is_space_at(text, match.end, bytes)) match.end += bytes;
  return true;
}

std::string VocabularyTokenizer::token_bytes(TokenId id, bool special) const {
  if (!tokens_.known(id)) return {};
  const TokenTable::Entry& entry = tokens_[id];
  if (entry.type == TokenType::kUnused || (is_control(id) && !special)) return {};
  return std::string(entry.bytes);
}

}  // namespace motley
