#include "client/answer_reader.hpp"

#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/quote.hpp"

namespace motley::client {
namespace {

using Json = nlohmann::json;

constexpr size_t kErrorTextBytesMax = 500;
// Where the texts of a chat's delta may stand; servers differ in the name of what a model thinks.
constexpr std::array<const char*, 3> kDeltaTexts = {"content", "reasoning_content", "reasoning"};

const Json* member(const Json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

std::string string_of(const Json* value) {
  return value != nullptr && value->is_string() ? value->get<std::string>() : std::string();
}

// The message of {"error": {"message": …}}, of {"error": "…"} or {"message": …}; "" where there is none.
std::string message_of(const Json& body) {
  const Json* failure = member(body, "error");
  if (failure != nullptr && failure->is_string()) return failure->get<std::string>();
  const std::string inner = failure == nullptr ? "" : string_of(member(*failure, "message"));
  return inner.empty() ? string_of(member(body, "message")) : inner;
}

std::string one_line(std::string_view text) {
  std::string line(text.substr(0, kErrorTextBytesMax));
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = ' ';
  }
  return line;
}

// What is new of a choice; a chat's may stand under several names.
std::string text_of(ApiKind kind, const Json& choice, bool* silent) {
  *silent = false;
  if (kind == ApiKind::kCompletion) return string_of(member(choice, "text"));
  const Json* delta = member(choice, "delta");
  std::string text;
  if (delta != nullptr) {
    for (const char* name : kDeltaTexts) text += string_of(member(*delta, name));
    *silent = text.empty() && member(*delta, "role") != nullptr && member(*delta, "tool_calls") == nullptr;
  }
  return text;
}

}  // namespace

std::string error_text(std::string_view body) {
  const Json json = Json::parse(body, nullptr, false);
  const std::string message = json.is_discarded() ? "" : message_of(json);
  return one_line(message.empty() ? body : std::string_view(message));
}

bool AnswerReader::fail(std::string why) {
  if (record_.error.empty()) record_.error = std::move(why);
  return false;
}

void AnswerReader::on_head(int status, std::string_view reason) {
  status_ = status;
  reason_ = one_line(reason);
}

bool AnswerReader::on_body(std::string_view bytes, double now_s) {
  if (status_ != 200) {
    error_body_ += bytes.substr(0, kErrorBodyBytesMax - error_body_.size());
    return error_body_.size() < kErrorBodyBytesMax;
  }
  bytes_ += bytes.size();
  if (bytes_ > kAnswerBytesMax) return fail(fmt::format("the answer has more than {} bytes", kAnswerBytesMax));
  const Status read = parser_.feed(bytes, [&](std::string_view data) { return on_event(data, now_s); });
  if (!read.ok()) return fail(read.message());
  return record_.error.empty();
}

bool AnswerReader::on_event(std::string_view data, double now_s) {
  if (data == "[DONE]") {
    done_ = true;
    return true;
  }
  const Json event = Json::parse(data, nullptr, false);
  if (!event.is_object()) return fail(fmt::format("an event of the stream is no JSON object: {}", in_quotes(data)));
  if (member(event, "error") != nullptr) return fail("error in the stream: " + error_text(data));
  if (const Json* usage = member(event, "usage")) {
    const Json* output = member(*usage, "completion_tokens");
    const Json* prompt = member(*usage, "prompt_tokens");
    if (output != nullptr && output->is_number_unsigned()) {
      record_.output_tokens = output->get<uint64_t>();
      record_.server_counted = true;
    }
    if (prompt != nullptr && prompt->is_number_unsigned()) record_.prompt_tokens = prompt->get<uint64_t>();
  }
  const Json* choices = member(event, "choices");
  if (choices != nullptr && !choices->is_array()) {
    return fail(fmt::format("choices of an event is no array: {}", in_quotes(data)));
  }
  if (choices != nullptr && !choices->empty()) on_choice(choices->front(), now_s);
  return true;
}

void AnswerReader::on_choice(const Json& choice, double now_s) {
  bool silent = false;
  const std::string text = text_of(kind_, choice, &silent);
  const bool finish = member(choice, "finish_reason") != nullptr;
  if (silent && !finish) return;
  if (++chunks_ == 1) {
    record_.ttft_s = now_s - record_.start_s;
  } else {
    record_.itl_s.push_back(now_s - last_chunk_s_);
  }
  last_chunk_s_ = now_s;
  record_.latency_s = now_s - record_.start_s;
  if (!text.empty() || !finish) ++token_chunks_;
  record_.text += text;
  finished_ |= finish;
}

void AnswerReader::on_end(const Status& transport) {
  if (record_.error.empty()) {
    if (status_ != 0 && status_ != 200) {
      const std::string said = error_text(error_body_);
      fail(
          fmt::format("HTTP {}{}{}{}{}", status_, reason_.empty() ? "" : " ", reason_, said.empty() ? "" : ": ", said));
    } else if (!transport.ok()) {
      fail(chunks_ == 0 ? transport.message()
                        : fmt::format("in mid-stream, after chunk {}: {}", chunks_, transport.message()));
    } else if (chunks_ == 0) {
      fail("the answer holds no event with a choice");
    } else if (!done_ && !finished_) {
      fail(fmt::format("the stream ended after chunk {} without [DONE] and without a finish_reason", chunks_));
    }
  }
  if (!record_.server_counted) record_.output_tokens = token_chunks_;
  record_.success = record_.error.empty();
}

}  // namespace motley::client
