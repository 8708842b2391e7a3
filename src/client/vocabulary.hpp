// Vocabulary: text to tokens and back, and which tokens a random prompt may be made of: of a tokenizer at hand, or of
// the server's /tokenize and /detokenize, in both dialects of the field (a text is "prompt" or "content"). Not
// thread-safe.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.hpp"
#include "base/status.hpp"
#include "client/http_client.hpp"
#include "text/tokenizer.hpp"

namespace motley::client {

class Vocabulary {
 public:
  virtual ~Vocabulary() = default;
  // Without BOS and EOS.
  virtual Result<std::vector<TokenId>> encode(std::string_view text) = 0;
  // Valid UTF-8: what is none becomes U+FFFD.
  virtual Result<std::string> decode(std::span<const TokenId> ids) = 0;
  // Ascending, at least one, none that steers a model (BOS, ends, roles of a chat).
  virtual Result<std::vector<TokenId>> plain_tokens() = 0;
};

// Every token of it that stands for text. The tokenizer outlives it.
std::unique_ptr<Vocabulary> local_vocabulary(const Tokenizer& tokenizer);

// Asks the server, whose routes stand at the root, beside /v1. plain_tokens() are those that the server makes of
// syllables, numbers and letters: no server tells its whole vocabulary. Errors name the address and the remedy.
// `client` outlives it.
std::unique_ptr<Vocabulary> server_vocabulary(HttpClient& client, std::string model);

}  // namespace motley::client
