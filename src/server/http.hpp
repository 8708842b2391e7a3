// HTTP requests and answers as values, and the bytes of an answer. Values only; thread-safe like any other value.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace motley {

struct HttpRequest {
  std::string method;         // "GET"
  std::string target;         // as received: path, and perhaps a query
  std::string authorization;  // the header's value, or empty
  std::string body;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers = {};  // beside Content-Type, Content-Length, Connection
};

std::string_view reason_phrase(int status);

// How an answer is put on the wire.
struct WireOptions {
  int minor_version = 1;  // the request's: HTTP/1.0 or HTTP/1.1
  bool keep_alive = true;
  bool head_only = false;  // the answer to HEAD: the header alone, with the body's length
};

std::string serialize(const HttpResponse& response, const WireOptions& wire);

// The header of a stream of server-sent events. HTTP/1.1 streams go out in chunks; HTTP/1.0 ones end with the
// connection.
std::string serialize_stream_header(const WireOptions& wire);
// `data` (not empty) as one chunk, where the stream goes out in chunks.
std::string stream_frame(std::string_view data, const WireOptions& wire);
std::string stream_end(const WireOptions& wire);

// The path of a target: without query and, in absolute form, without scheme and authority; %xx decoded.
// False for a broken escape.
bool path_of_target(std::string_view target, std::string& path);

}  // namespace motley
