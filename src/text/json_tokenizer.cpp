#include "text/json_tokenizer.hpp"

#include <algorithm>
#include <unordered_set>

#include "base/quote.hpp"
#include "text/bpe_model.hpp"
#include "text/json_decoder.hpp"
#include "text/json_fields.hpp"
#include "text/tokenizer_json.hpp"
#include "text/unigram_model.hpp"
#include "text/vocabulary.hpp"

namespace motley {
namespace {

using Json = nlohmann::json;

constexpr size_t kIdGapsMax = 1 << 16;      // ids below the highest that no token has
constexpr size_t kEndOfTextTokensMax = 64;  // that a post_processor puts on one side
constexpr std::string_view kFile = "tokenizer.json", kConfigFile = "tokenizer_config.json";

Result<uint32_t> id_of(const JsonFields& fields, const char* key) {
  if (!fields.has(key) || !fields[key].is_number_unsigned() || fields[key].get<uint64_t>() >= kTokensMax) {
    return fields.wrong(key, "is not a token id");
  }
  return fields[key].get<uint32_t>();
}

const Json& member(const Json& object, const char* key) {
  static const Json null;
  return object.is_object() && object.contains(key) ? object[key] : null;
}

// Tokens by id while they are gathered.
struct Gathered {
  std::vector<std::string_view> pieces;
  std::vector<int32_t> types;
  size_t count = 0;  // ids that have a token

  Status put(uint32_t id, std::string_view piece, TokenType type) {
    if (id >= pieces.size()) {
      if (id > count + kIdGapsMax) {
        return invalid_argument("the token {} has the id {} although there are only {} tokens", in_quotes(piece), id,
                                count);
      }
      pieces.resize(id + 1);
      types.resize(id + 1, static_cast<int32_t>(TokenType::kUnused));
    }
    const bool fresh = types[id] == static_cast<int32_t>(TokenType::kUnused);
    if (!fresh && pieces[id] != piece) {
      return invalid_argument("the tokens {} and {} both have the id {}", in_quotes(pieces[id]), in_quotes(piece), id);
    }
    count += fresh ? 1 : 0;
    pieces[id] = piece;
    types[id] = static_cast<int32_t>(type);
    return ok_status();
  }
};

// bos_token and eos_token are a string or an object with its content.
Result<std::optional<TokenId>> role_of(const Json& config, const char* key, const TokenTable& tokens) {
  const Json& node = member(config, key);
  const Json& text = node.is_object() ? member(node, "content") : node;
  if (text.is_null()) return std::optional<TokenId>();
  if (!text.is_string()) return invalid_argument("{} of {} is not a string", key, kConfigFile);
  const auto id = tokens.find(text.get_ref<const std::string&>());
  if (!id) {
    return invalid_argument("{} of {} is {}, which is not in the vocabulary", key, kConfigFile,
                            in_quotes(text.get_ref<const std::string&>()));
  }
  return id;
}

}  // namespace

struct JsonTokenizer::Working final : Scratch {
  std::string normalized;
  PreTokenizeStep::Scratch pieces;
  WordModel::Scratch words;
};

Result<std::unique_ptr<Tokenizer>> JsonTokenizer::create(std::string_view tokenizer_json,
                                                         std::string_view tokenizer_config_json,
                                                         std::span<const TokenId> end_tokens) {
  ASSIGN_OR_RETURN(const TokenizerJson file, read_tokenizer_json(tokenizer_json, kFile));
  Json config = Json::object();
  if (!tokenizer_config_json.empty()) {
    ASSIGN_OR_RETURN(TokenizerJson read, read_tokenizer_json(tokenizer_config_json, kConfigFile));
    config = std::move(read.rest);
  }
  std::unique_ptr<JsonTokenizer> made(new JsonTokenizer());
  const Status built = made->build(file, config, end_tokens);
  if (!built.ok()) return built.annotate(kFile);
  if (const Status applied = made->apply_config(config); !applied.ok()) return applied.annotate(kConfigFile);
  return std::unique_ptr<Tokenizer>(std::move(made));
}

Status JsonTokenizer::build(const TokenizerJson& file, const Json& config, std::span<const TokenId> end_tokens) {
  ASSIGN_OR_RETURN(normalizer_, NormalizeSteps::create(member(file.rest, "normalizer")));
  ASSIGN_OR_RETURN(pre_tokenizer_, PreTokenizeSteps::create(member(file.rest, "pre_tokenizer")));
  ASSIGN_OR_RETURN(const JsonDecoder decoder, read_json_decoder(member(file.rest, "decoder")));
  if (decoder.byte_level != pre_tokenizer_.byte_level()) {
    return error(MOTLEY_UNIMPLEMENTED,
                 "pre_tokenizer and decoder must both be ByteLevel or neither; take the model as GGUF instead");
  }
  strips_leading_space_ = decoder.strips_leading_space;
  const bool drops = std::any_of(decoder.replacements.begin(), decoder.replacements.end(),
                                 [](const JsonDecoder::Replacement& r) { return r.dropped_in_first; });
  if (drops) spell_first_ = speller_of(decoder, true);
  RETURN_IF_ERROR(build_tokens(file, speller_of(decoder)));
  RETURN_IF_ERROR(build_roles(config, end_tokens));
  build_normalized_literals(speller_of(decoder));
  if (const Json& post = member(file.rest, "post_processor"); !post.is_null()) {
    RETURN_IF_ERROR(build_ends_of_text(post, 0));
  }
  return build_model(file);
}

Status JsonTokenizer::build_tokens(const TokenizerJson& file, const TokenTable::Speller& spell) {
  const JsonFields model(member(file.rest, "model"), "model");
  ASSIGN_OR_RETURN(const bool byte_fallback, model.boolean("byte_fallback", false));
  Gathered gathered;
  std::vector<const TokenizerJson::Token*> by_id;  // ids come in any order; gaps are counted in ascending order
  for (const TokenizerJson::Token& token : file.vocab) by_id.push_back(&token);
  std::sort(by_id.begin(), by_id.end(), [](const auto* a, const auto* b) { return a->id < b->id; });
  for (const TokenizerJson::Token* token : by_id) {
    const bool byte = byte_fallback && byte_token_value(token->piece).has_value();
    RETURN_IF_ERROR(gathered.put(token->id, token->piece, byte ? TokenType::kByte : TokenType::kNormal));
  }
  if (const Json& added = member(file.rest, "added_tokens"); !added.is_null()) {
    if (!added.is_array()) return invalid_argument("added_tokens is not a list");
    std::vector<std::pair<uint32_t, const Json*>> ordered;
    for (const Json& each : added) {
      ASSIGN_OR_RETURN(const uint32_t id, id_of(JsonFields(each, "added_tokens[]"), "id"));
      ordered.emplace_back(id, &each);
    }
    std::sort(ordered.begin(), ordered.end());
    for (size_t i = 1; i < ordered.size(); ++i) {
      if (ordered[i].first == ordered[i - 1].first) {
        return invalid_argument("added_tokens has the id {} twice", ordered[i].first);
      }
    }
    for (const auto& [id, each] : ordered) {
      const JsonFields fields(*each, "added_tokens[]");
      if (!fields.has("content") || !fields["content"].is_string()) return fields.wrong("content", "is not a string");
      LiteralRule rule;
      rule.id = static_cast<TokenId>(id);
      ASSIGN_OR_RETURN(rule.takes_left, fields.boolean("lstrip", false));
      ASSIGN_OR_RETURN(rule.takes_right, fields.boolean("rstrip", false));
      ASSIGN_OR_RETURN(rule.single_word, fields.boolean("single_word", false));
      ASSIGN_OR_RETURN(rule.normalized, fields.boolean("normalized", false));
      ASSIGN_OR_RETURN(const bool special, fields.boolean("special", false));
      RETURN_IF_ERROR(gathered.put(id, fields["content"].get_ref<const std::string&>(),
                                   special ? TokenType::kControl : TokenType::kUserDefined));
      rules_of_added_.push_back(rule);
    }
  }
  if (gathered.count == 0) return invalid_argument("model.vocab is empty: the file holds no vocabulary");
  VocabularyData data;
  data.tokens = gathered.pieces;
  data.types = gathered.types;
  RETURN_IF_ERROR(check_vocabulary(data));
  return tokens_.fill(gathered.pieces, gathered.types, spell);
}

Status JsonTokenizer::build_roles(const Json& config, std::span<const TokenId> end_tokens) {
  ASSIGN_OR_RETURN(const auto bos, role_of(config, "bos_token", tokens_));
  ASSIGN_OR_RETURN(const auto eos, role_of(config, "eos_token", tokens_));
  std::vector<TokenId> end(end_tokens.begin(), end_tokens.end());
  for (const TokenId id : end) {
    if (!tokens_.known(id)) return invalid_argument("the end token {} is outside the {} tokens", id, tokens_.size());
  }
  if (eos) end.push_back(*eos);
  return take_roles(bos, eos, end, rules_of_added_);
}

// Some are found in what the normalizer makes of the text, by what it makes of their own, and stand for that.
void JsonTokenizer::build_normalized_literals(const TokenTable::Speller& spell) {
  Regex::Scratch scratch;
  LiteralSet::Spellings anyones, all;
  std::unordered_set<std::string_view> known;
  for (const LiteralRule& rule : rules_of_added_) {
    if (!rule.normalized) continue;
    NormalizedToken& token = normalized_tokens_[rule.id];
    token.piece = piece(rule.id);
    normalizer_.apply(token.piece, Place::kStart, scratch);
    if (!spell(token.piece, tokens_[rule.id].type, token.bytes)) token.bytes = token.piece;
    tokens_.respell(rule.id, token.bytes);
    if (token.piece.empty() || !known.insert(token.piece).second) continue;
    all.emplace_back(token.piece, rule.id);
    if (!is_marker(rule.id)) anyones.emplace_back(token.piece, rule.id);
  }
  normalized_literals_ = LiteralSet(std::move(anyones), std::move(all));
}

// What stands before and after a text: the special tokens of a TemplateProcessing.
Status JsonTokenizer::build_ends_of_text(const Json& post_processor, int depth) {
  const JsonFields fields(post_processor, "post_processor");
  ASSIGN_OR_RETURN(const std::string type, fields.string("type"));
  if (type == "ByteLevel") return ok_status();
  if (type == "Sequence") {
    ASSIGN_OR_RETURN(const Json* const list, fields.list("processors", depth));
    for (const Json& each : *list) RETURN_IF_ERROR(build_ends_of_text(each, depth + 1));
    return ok_status();
  }
  if (type != "TemplateProcessing") return fields.unknown_type(type, "TemplateProcessing, ByteLevel, Sequence");
  ASSIGN_OR_RETURN(const Json* const single, fields.list("single"));
  std::vector<TokenId> before, after;
  bool seen_text = false;
  for (const Json& part : *single) {
    if (const Json& sequence = member(part, "Sequence"); sequence.is_object()) {
      if (std::exchange(seen_text, true)) return fields.unsupported("single", "holds the text twice");
      continue;
    }
    const Json& name = member(member(part, "SpecialToken"), "id");
    if (!name.is_string()) return fields.wrong("single", "has a part that is neither Sequence nor SpecialToken");
    const std::string& key = name.get_ref<const std::string&>();
    const Json& ids = member(member(member(post_processor, "special_tokens"), key.c_str()), "ids");
    if (!ids.is_array()) return fields.wrong("special_tokens", fmt::format("has no ids for {}", in_quotes(key)));
    std::vector<TokenId>& side = seen_text ? after : before;
    for (const Json& id : ids) {
      if (!id.is_number_unsigned() || id.get<uint64_t>() >= tokens_.size()) {
        return fields.wrong("special_tokens", fmt::format("has an id for {} outside the vocabulary", in_quotes(key)));
      }
      side.push_back(id.get<TokenId>());
    }
    if (side.size() > kEndOfTextTokensMax) return fields.wrong("single", "puts too many tokens around the text");
  }
  if (!seen_text) return fields.wrong("single", "has no Sequence");
  prefix_.insert(prefix_.begin(), before.begin(), before.end());
  suffix_.insert(suffix_.end(), after.begin(), after.end());
  return ok_status();
}

// add_bos_token and add_eos_token, where tokenizer_config.json says so, go before the post_processor.
Status JsonTokenizer::apply_config(const Json& config) {
  const JsonFields fields(config, "tokenizer_config");
  ASSIGN_OR_RETURN(const bool add_bos, fields.boolean("add_bos_token", false));
  ASSIGN_OR_RETURN(const bool add_eos, fields.boolean("add_eos_token", false));
  if (add_bos && !bos()) return invalid_argument("add_bos_token is set but there is no bos_token");
  if (add_eos && !eos()) return invalid_argument("add_eos_token is set but there is no eos_token");
  if (fields.has("add_bos_token") && bos()) {
    const bool has = !prefix_.empty() && prefix_.front() == *bos();
    if (add_bos && !has) prefix_.insert(prefix_.begin(), *bos());
    if (!add_bos && has) prefix_.erase(prefix_.begin());
  }
  if (fields.has("add_eos_token") && eos()) {
    const bool has = !suffix_.empty() && suffix_.back() == *eos();
    if (add_eos && !has) suffix_.push_back(*eos());
    if (!add_eos && has) suffix_.pop_back();
  }
  return ok_status();
}

Status JsonTokenizer::build_model(const TokenizerJson& file) {
  const JsonFields fields(member(file.rest, "model"), "model");
  ASSIGN_OR_RETURN(const std::string type, fields.string("type", file.has_merges ? "BPE" : "Unigram"));
  if (type == "BPE") return build_bpe(file);
  if (type == "Unigram") return build_unigram(file);
  return fields.unknown_type(type, "BPE, Unigram");
}

Status JsonTokenizer::build_bpe(const TokenizerJson& file) {
  const JsonFields fields(member(file.rest, "model"), "model");
  if (file.vocab_has_scores) return fields.wrong("vocab", "is not an object, as a BPE model needs");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    ASSIGN_OR_RETURN(const std::string affix, fields.string(key, ""));
    if (!affix.empty()) return fields.unsupported(key, "is set, which is not supported");
  }
  if (fields.has("dropout") && fields["dropout"] != 0) {
    return fields.unsupported("dropout", "is set, which is not supported");
  }
  BpeModel::Rules rules;
  rules.of_bytes = pre_tokenizer_.byte_level();
  ASSIGN_OR_RETURN(rules.ignore_merges, fields.boolean("ignore_merges", false));
  ASSIGN_OR_RETURN(rules.byte_fallback, fields.boolean("byte_fallback", false));
  ASSIGN_OR_RETURN(rules.fuse_unknown, fields.boolean("fuse_unk", false));
  if (fields.has("unk_token")) {
    ASSIGN_OR_RETURN(const std::string unknown, fields.string("unk_token"));
    rules.unknown = find(unknown);
    if (!rules.unknown) return fields.wrong("unk_token", "is not in the vocabulary");
  }
  std::vector<MergePair> pairs;
  pairs.reserve(file.merges.size() / 2);
  for (size_t i = 0; i + 1 < file.merges.size(); i += 2) pairs.push_back({file.merges[i], file.merges[i + 1]});
  ASSIGN_OR_RETURN(MergeTable merges, merges_of_pairs(tokens_, pairs));
  ASSIGN_OR_RETURN(model_, BpeModel::create(tokens_, std::move(merges), rules));
  return ok_status();
}

Status JsonTokenizer::build_unigram(const TokenizerJson& file) {
  const JsonFields fields(member(file.rest, "model"), "model");
  if (!file.vocab_has_scores) return fields.wrong("vocab", "is not a list, as a Unigram model needs");
  if (pre_tokenizer_.byte_level()) return fields.unsupported("type", "is Unigram over bytes, which is not supported");
  UnigramModel::Rules rules;
  ASSIGN_OR_RETURN(rules.byte_fallback, fields.boolean("byte_fallback", false));
  if (fields.has("unk_id")) {
    ASSIGN_OR_RETURN(const uint32_t unknown, id_of(fields, "unk_id"));
    if (unknown >= tokens_.size()) return fields.wrong("unk_id", "is outside the vocabulary");
    rules.unknown = static_cast<TokenId>(unknown);
  }
  std::vector<double> scores;
  scores.reserve(file.vocab.size());
  for (const TokenizerJson::Token& token : file.vocab) scores.push_back(token.score);
  ASSIGN_OR_RETURN(model_, UnigramModel::create(tokens_, scores, rules));
  return ok_status();
}

std::unique_ptr<VocabularyTokenizer::Scratch> JsonTokenizer::make_scratch() const {
  return std::make_unique<Working>();
}

void JsonTokenizer::encode_text(std::string_view text, Place place, Scratch& scratch, std::vector<TokenId>& out) const {
  Working& working = static_cast<Working&>(scratch);
  if (!normalizer_.empty()) {
    working.normalized = text;
    normalizer_.apply(working.normalized, place, working.pieces.regex);
    text = working.normalized;
  }
  const SpecialMatcher& literals = normalized_literals_.of(scratch.trusted);
  cut_at_literals(literals, text, place, out, [&](std::string_view between, Place where) {
    pre_tokenizer_.apply(between, where, working.pieces);
    for (const TextPiece& piece : working.pieces.pieces) model_->encode(piece.text, working.words, out);
  });
}

std::string JsonTokenizer::first_token_bytes(TokenId id, bool special) const {
  std::string bytes = token_bytes(id, special);
  if (!spell_first_ || bytes.empty()) return Tokenizer::first_token_bytes(id, special);
  std::string first;
  const auto normalized = normalized_tokens_.find(id);
  const std::string_view spelling = normalized == normalized_tokens_.end() ? piece(id) : normalized->second.piece;
  return spell_first_(spelling, tokens_[id].type, first) ? first : bytes;
}

}  // namespace motley
