#include "server/http.hpp"

#include <fmt/format.h>

#include <array>
#include <iterator>

namespace motley {
namespace {

struct Phrase {
  int status;
  std::string_view text;
};
constexpr std::array<Phrase, 18> kPhrases = {{{100, "Continue"},
                                              {200, "OK"},
                                              {204, "No Content"},
                                              {400, "Bad Request"},
                                              {401, "Unauthorized"},
                                              {403, "Forbidden"},
                                              {404, "Not Found"},
                                              {405, "Method Not Allowed"},
                                              {408, "Request Timeout"},
                                              {409, "Conflict"},
                                              {413, "Payload Too Large"},
                                              {417, "Expectation Failed"},
                                              {429, "Too Many Requests"},
                                              {431, "Request Header Fields Too Large"},
                                              {500, "Internal Server Error"},
                                              {501, "Not Implemented"},
                                              {503, "Service Unavailable"},
                                              {504, "Gateway Timeout"}}};

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

void append_status_line(std::string& out, int status, const WireOptions& wire) {
  fmt::format_to(std::back_inserter(out), "HTTP/1.{} {} {}\r\n", wire.minor_version, status, reason_phrase(status));
}

// HTTP/1.1 keeps alive unless told, HTTP/1.0 closes unless told.
void append_connection(std::string& out, const WireOptions& wire) {
  if (wire.keep_alive && wire.minor_version == 0) out += "Connection: keep-alive\r\n";
  if (!wire.keep_alive && wire.minor_version == 1) out += "Connection: close\r\n";
}

}  // namespace

std::string_view reason_phrase(int status) {
  for (const Phrase& phrase : kPhrases) {
    if (phrase.status == status) return phrase.text;
  }
  return "Unknown";
}

std::string serialize(const HttpResponse& response, const WireOptions& wire) {
  std::string out;
  out.reserve(response.body.size() + 256);
  append_status_line(out, response.status, wire);
  if (response.status != 204) {
    fmt::format_to(std::back_inserter(out), "Content-Type: {}\r\nContent-Length: {}\r\n", response.content_type,
                   response.body.size());
  }
  for (const auto& [name, value] : response.headers) fmt::format_to(std::back_inserter(out), "{}: {}\r\n", name, value);
  append_connection(out, wire);
  out += "\r\n";
  if (!wire.head_only && response.status != 204) out += response.body;
  return out;
}

std::string serialize_stream_header(const WireOptions& wire) {
  std::string out;
  append_status_line(out, 200, wire);
  out += "Content-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n";
  if (wire.minor_version == 1) out += "Transfer-Encoding: chunked\r\n";
  append_connection(out, wire);
  out += "\r\n";
  return out;
}

std::string stream_frame(std::string_view data, const WireOptions& wire) {
  if (wire.minor_version == 0) return std::string(data);
  return fmt::format("{:x}\r\n{}\r\n", data.size(), data);
}

std::string stream_end(const WireOptions& wire) { return wire.minor_version == 0 ? "" : "0\r\n\r\n"; }

bool path_of_target(std::string_view target, std::string& path) {
  if (const size_t scheme = target.find("://"); scheme != std::string_view::npos && !target.starts_with('/')) {
    const size_t slash = target.find('/', scheme + 3);
    target = slash == std::string_view::npos ? "/" : target.substr(slash);
  }
  target = target.substr(0, target.find_first_of("?#"));
  path.clear();
  for (size_t i = 0; i < target.size(); ++i) {
    if (target[i] != '%') {
      path += target[i];
      continue;
    }
    const int high = i + 2 < target.size() ? hex_digit(target[i + 1]) : -1;
    const int low = i + 2 < target.size() ? hex_digit(target[i + 2]) : -1;
    if (high < 0 || low < 0) return false;
    path += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return true;
}

}  // namespace motley
