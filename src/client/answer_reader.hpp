// AnswerReader: a server's streamed answer, bytes and times in, a RequestRecord out.
//
// A chunk is an event with a choice in it. A chat's chunk that names the role and says nothing is passed over, so that
// the first token is what the time to it ends with. Several chunks of one piece of bytes have one time. Nothing that a
// server sends is trusted: what cannot be read makes the request a failed one, whose error says what it was.
// Not thread-safe.
#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "base/status.hpp"
#include "client/request_record.hpp"
#include "client/sse_parser.hpp"

namespace motley::client {

enum class ApiKind { kCompletion, kChat };

inline constexpr size_t kAnswerBytesMax = 256u << 20;  // of one stream
inline constexpr size_t kErrorBodyBytesMax = 64u << 10;

// One line for people of an error's body: OpenAI's message if it is one, else its beginning.
std::string error_text(std::string_view body);

class AnswerReader {
 public:
  // Fills `record`, which outlives the reader and holds start_s.
  AnswerReader(ApiKind kind, RequestRecord& record) : kind_(kind), record_(record) {}

  // The calls of an HTTP answer, in this order: the head, pieces of the body, the end. `now_s`: after the beginning of
  // the run, never less than before.
  void on_head(int status, std::string_view reason);
  // False: the request has failed, and no more of it is wanted.
  bool on_body(std::string_view bytes, double now_s);
  // `transport`: how the connection sees the end.
  void on_end(const Status& transport);

 private:
  bool on_event(std::string_view data, double now_s);
  void on_choice(const nlohmann::json& choice, double now_s);
  bool fail(std::string why);

  const ApiKind kind_;
  RequestRecord& record_;
  SseParser parser_;
  int status_ = 0;
  std::string reason_, error_body_;
  size_t bytes_ = 0, chunks_ = 0, token_chunks_ = 0;
  double last_chunk_s_ = 0;
  bool done_ = false, finished_ = false;  // [DONE] was seen; a finish_reason was
};

}  // namespace motley::client
