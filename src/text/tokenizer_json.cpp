#include "text/tokenizer_json.hpp"

#include <array>
#include <utility>

#include "base/quote.hpp"
#include "text/vocabulary.hpp"

namespace motley {
namespace {

using Json = nlohmann::json;

// Receives the parser's events; false ends the parse with status() set.
class Reader final : public nlohmann::json_sax<Json> {
 public:
  explicit Reader(TokenizerJson& out) : out_(out) {}
  const Status& status() const { return status_; }

  bool null() override { return value(nullptr); }
  bool boolean(bool v) override { return value(v); }
  bool number_integer(number_integer_t v) override { return capture_ ? number(static_cast<double>(v)) : value(v); }
  bool number_unsigned(number_unsigned_t v) override { return capture_ ? number(static_cast<double>(v)) : value(v); }
  bool number_float(number_float_t v, const string_t&) override { return capture_ ? number(v) : value(v); }
  bool string(string_t& v) override { return capture_ ? captured_string(v) : value(std::move(v)); }
  bool binary(binary_t&) override { return fail("holds binary data"); }

  bool start_object(size_t) override { return open(Json::object()); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& v) override {
    if (stack_.size() == 1) section_ = v;
    key_ = std::move(v);
    return true;
  }
  bool parse_error(size_t position, const std::string&, const Json::exception&) override {
    return fail(fmt::format("is not valid JSON at byte {}", position));
  }

 private:
  enum Capture : uint8_t { kNone, kVocab, kMerges };

  bool fail(std::string what) {
    status_ = Status(MOTLEY_INVALID_ARGUMENT, std::move(what));
    return false;
  }
  bool exhausted(const char* what, size_t limit) {
    status_ = error(MOTLEY_RESOURCE_EXHAUSTED, "holds more than {} {}", limit, what);
    return false;
  }

  bool open(Json container) {
    if (capture_) {
      if (level_ == 2) return fail(fmt::format("nests model.{} too deeply", captured_name()));
      ++level_;
      parts_ = 0;
      return true;
    }
    if (stack_.size() == 2 && section_ == "model" && (key_ == "vocab" || key_ == "merges")) {
      capture_ = key_ == "vocab" ? kVocab : kMerges;
      if (std::exchange(captured_[capture_], true)) return twice() != nullptr;
      by_key_ = container.is_object();
      level_ = 1;
      if (capture_ == kMerges && by_key_) return fail("has an object for model.merges, not a list");
      (capture_ == kMerges ? out_.has_merges : out_.vocab_has_scores) = !by_key_;
      return true;
    }
    if (stack_.size() == kTokenizerJsonDepthMax) return exhausted("levels of nesting", kTokenizerJsonDepthMax);
    if (stack_.empty() && !container.is_object()) return fail("is not a JSON object");
    Json* place = put(std::move(container));
    if (place != nullptr) stack_.push_back(place);
    return place != nullptr;
  }

  bool close() {
    if (!capture_) {
      stack_.pop_back();
      return true;
    }
    if (level_ == 2 && parts_ != 2)
      return fail(fmt::format("has an entry of model.{} that is no pair", captured_name()));
    if (--level_ == 0) capture_ = kNone;
    return true;
  }

  bool value(Json v) {
    if (capture_) return fail(fmt::format("has an entry of model.{} that is no string or number", captured_name()));
    if (stack_.empty()) return fail("is not a JSON object");
    return put(std::move(v)) != nullptr;
  }

  Json* put(Json v) {
    if (++values_ > kTokenizerJsonValuesMax) {
      exhausted("values", kTokenizerJsonValuesMax);
      return nullptr;
    }
    if (stack_.empty()) return &(out_.rest = std::move(v));
    Json& parent = *stack_.back();
    if (parent.is_array()) return &parent.emplace_back(std::move(v));
    const auto [at, fresh] = parent.emplace(key_, std::move(v));
    return fresh ? &*at : twice();
  }

  Json* twice() {
    fail(fmt::format("has the key {} twice in one object", in_quotes(std::string_view(key_))));
    return nullptr;
  }

  const char* captured_name() const { return capture_ == kVocab ? "vocab" : "merges"; }

  bool captured_string(std::string& v) {
    if (capture_ == kVocab) {
      if (by_key_ || level_ != 2 || parts_++ != 0)
        return fail("has an entry of model.vocab that is no token with a number");
      key_ = std::move(v);
      return true;
    }
    if (out_.merges.size() >= 2 * kMergesMax) return exhausted("merges", kMergesMax);
    if (level_ == 2) {
      if (++parts_ > 2) return fail("has an entry of model.merges that is no pair");
      out_.merges.push_back(std::move(v));
      return true;
    }
    const std::string_view merge = v;
    const auto pair = split_merge(merge);
    if (!pair)
      return fail(fmt::format("has {} in model.merges, not two tokens with a space between", in_quotes(merge)));
    out_.merges.emplace_back(pair->first);
    out_.merges.emplace_back(pair->second);
    return true;
  }

  bool number(double v) {
    const bool in_place = capture_ == kVocab && (by_key_ ? level_ == 1 : level_ == 2 && parts_++ == 1);
    if (!in_place) return fail(fmt::format("has a number out of place in model.{}", captured_name()));
    if (out_.vocab.size() >= kTokensMax) return exhausted("tokens", kTokensMax);
    TokenizerJson::Token token;
    token.id = static_cast<uint32_t>(out_.vocab.size());
    if (!by_key_) {
      token.score = v;
    } else if (!(v >= 0 && v < kTokensMax) || v != static_cast<uint32_t>(v)) {
      return fail(fmt::format("gives the token {} the id {}; ids are whole numbers below {}",
                              in_quotes(std::string_view(key_)), v, kTokensMax));
    } else {
      token.id = static_cast<uint32_t>(v);
    }
    token.piece = std::move(key_);
    out_.vocab.push_back(std::move(token));
    return true;
  }

  TokenizerJson& out_;
  Status status_;
  std::vector<Json*> stack_;   // open containers of the tree
  std::string section_, key_;  // the last key of the outermost object; the last key, or an entry's token
  size_t values_ = 0;
  Capture capture_ = kNone;
  std::array<bool, 3> captured_{};  // by Capture: seen
  bool by_key_ = false;             // the captured container is an object
  int level_ = 0, parts_ = 0;       // open captured containers; values of the inner one so far
};

}  // namespace

Result<TokenizerJson> read_tokenizer_json(std::string_view text, std::string_view file) {
  if (text.size() > kTokenizerJsonBytesMax) {
    return error(MOTLEY_RESOURCE_EXHAUSTED, "{} has {} bytes; the limit is {}", file, text.size(),
                 kTokenizerJsonBytesMax);
  }
  TokenizerJson out;
  Reader reader(out);
  if (!Json::sax_parse(text, &reader)) {
    return Status(reader.status().code(), fmt::format("{} {}", file, reader.status().message()));
  }
  return out;
}

}  // namespace motley
