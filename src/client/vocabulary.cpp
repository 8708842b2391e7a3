#include "client/vocabulary.hpp"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/utf8.hpp"
#include "client/answer_reader.hpp"

namespace motley::client {
namespace {

using Json = nlohmann::json;

std::string repaired(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const Utf8Step step = utf8_step(text);
    out += step.kind == Utf8Step::kCharacter ? text.substr(0, step.bytes) : kReplacementCharacter;
    text.remove_prefix(step.bytes);
  }
  return out;
}

class LocalVocabulary final : public Vocabulary {
 public:
  explicit LocalVocabulary(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  Result<std::vector<TokenId>> encode(std::string_view text) override { return tokenizer_.encode(text, false, true); }
  Result<std::string> decode(std::span<const TokenId> ids) override { return repaired(tokenizer_.decode(ids, true)); }
  Result<std::vector<TokenId>> plain_tokens() override {
    std::vector<TokenId> tokens;
    for (TokenId id = 0; id < static_cast<TokenId>(tokenizer_.size()); ++id) {
      if (tokenizer_.is_marker(id) || tokenizer_.is_literal(id) || tokenizer_.token_bytes(id, false).empty()) continue;
      tokens.push_back(id);
    }
    if (tokens.empty()) return invalid_argument("the tokenizer has no token that stands for text");
    return tokens;
  }

 private:
  const Tokenizer& tokenizer_;
};

// Common letters in common places: some hundred tokens of any vocabulary of words.
std::string sample_text() {
  std::string text;
  for (const char first : std::string_view("bcdfghjklmnprstvwyz")) {
    for (const char middle : std::string_view("aeiou")) {
      for (const char last : std::string_view("bcdfgklmnprstvwxy")) text += std::string{' ', first, middle, last};
    }
  }
  for (int number = 0; number < 1000; number += 7) text += " " + std::to_string(number);
  for (char letter = 'A'; letter <= 'Z'; ++letter) text += std::string{' ', letter};
  return text;
}

class ServerVocabulary final : public Vocabulary {
 public:
  ServerVocabulary(HttpClient& client, std::string model) : client_(client), model_(std::move(model)) {}
  Result<std::vector<TokenId>> encode(std::string_view text) override;
  Result<std::string> decode(std::span<const TokenId> ids) override;
  Result<std::vector<TokenId>> plain_tokens() override;

 private:
  Result<Json> ask(const char* route, const Json& body);

  HttpClient& client_;
  const std::string model_;
};

Result<Json> ServerVocabulary::ask(const char* route, const Json& body) {
  ASSIGN_OR_RETURN(const HttpReply reply,
                   client_.fetch("POST", route, body.dump(-1, ' ', false, Json::error_handler_t::replace)));
  const auto refusal = [&](std::string_view what) {
    return error(MOTLEY_FAILED_PRECONDITION, "{}{}: {}; give the model's tokenizer with --tokenizer PATH",
                 client_.address().text(), route, what);
  };
  if (reply.status != 200) {
    const std::string said = error_text(reply.body);
    return refusal(fmt::format("HTTP {} {}{}{}", reply.status, reply.reason, said.empty() ? "" : ": ", said));
  }
  Json json = Json::parse(reply.body, nullptr, false);
  if (!json.is_object()) return refusal("the answer is no JSON object");
  return json;
}

Result<std::vector<TokenId>> ServerVocabulary::encode(std::string_view text) {
  // Each server reads the names it knows.
  ASSIGN_OR_RETURN(const Json reply, ask("/tokenize", {{"model", model_},
                                                       {"prompt", text},
                                                       {"content", text},
                                                       {"add_special_tokens", false},
                                                       {"add_special", false}}));
  const auto tokens = reply.find("tokens");
  const auto refusal = [&] {
    return error(MOTLEY_FAILED_PRECONDITION,
                 "{}/tokenize: the answer has no \"tokens\", an array of ids; give the "
                 "model's tokenizer with --tokenizer PATH",
                 client_.address().text());
  };
  if (tokens == reply.end() || !tokens->is_array()) return refusal();
  std::vector<TokenId> ids;
  ids.reserve(tokens->size());
  for (const Json& token : *tokens) {
    if (!token.is_number_unsigned() || token.get<uint64_t>() > std::numeric_limits<TokenId>::max()) return refusal();
    ids.push_back(token.get<TokenId>());
  }
  return ids;
}

Result<std::string> ServerVocabulary::decode(std::span<const TokenId> ids) {
  ASSIGN_OR_RETURN(const Json reply, ask("/detokenize", {{"model", model_}, {"tokens", ids}}));
  for (const char* name : {"prompt", "content"}) {
    const auto text = reply.find(name);
    if (text != reply.end() && text->is_string()) return text->get<std::string>();
  }
  return error(MOTLEY_FAILED_PRECONDITION,
               "{}/detokenize: the answer has neither \"prompt\" nor \"content\"; give the "
               "model's tokenizer with --tokenizer PATH",
               client_.address().text());
}

Result<std::vector<TokenId>> ServerVocabulary::plain_tokens() {
  ASSIGN_OR_RETURN(std::vector<TokenId> tokens, encode(sample_text()));
  std::sort(tokens.begin(), tokens.end());
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
  if (!tokens.empty()) return tokens;
  return error(MOTLEY_FAILED_PRECONDITION, "{}/tokenize: no tokens; give the model's tokenizer with --tokenizer PATH",
               client_.address().text());
}

}  // namespace

std::unique_ptr<Vocabulary> local_vocabulary(const Tokenizer& tokenizer) {
  return std::make_unique<LocalVocabulary>(tokenizer);
}

std::unique_ptr<Vocabulary> server_vocabulary(HttpClient& client, std::string model) {
  return std::make_unique<ServerVocabulary>(client, std::move(model));
}

}  // namespace motley::client
