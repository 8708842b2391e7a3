#include "server/testing/http_client.hpp"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

namespace motley::testing {
namespace {

constexpr int kGiveUpSeconds = 30;  // a server that hangs fails the test instead of hanging it

}  // namespace

std::string http_request(std::string_view method, std::string_view target, std::string_view body,
                         std::string_view headers) {
  return fmt::format("{} {} HTTP/1.1\r\nHost: test\r\n{}Content-Length: {}\r\n\r\n{}", method, target, headers,
                     body.size(), body);
}

HttpClient::HttpClient(uint16_t port, int receive_buffer) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
  if (receive_buffer > 0) ::setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
  const timeval patience{kGiveUpSeconds, 0};
  ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) close();
}

HttpClient::~HttpClient() { close(); }

HttpClient::HttpClient(HttpClient&& other) noexcept
    : socket_(std::exchange(other.socket_, -1)), buffer_(std::move(other.buffer_)) {}

void HttpClient::close() {
  if (socket_ >= 0) ::close(std::exchange(socket_, -1));
}

void HttpClient::finish_sending() { ::shutdown(socket_, SHUT_WR); }

bool HttpClient::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

bool HttpClient::fill() {
  char chunk[16384];
  const ssize_t got = ::recv(socket_, chunk, sizeof(chunk), 0);
  if (got <= 0) return false;
  buffer_.append(chunk, static_cast<size_t>(got));
  return true;
}

std::string HttpClient::take(size_t bytes) {
  while (buffer_.size() < bytes && fill()) continue;
  std::string out = buffer_.substr(0, bytes);
  buffer_.erase(0, bytes);
  return out;
}

std::string HttpClient::read_until(std::string_view mark) {
  size_t at = 0;
  while ((at = buffer_.find(mark)) == std::string::npos) {
    if (!fill()) return std::exchange(buffer_, {});
  }
  return take(at + mark.size());
}

HttpReply HttpClient::read_reply(bool head) {
  HttpReply reply;
  std::string line = read_until("\r\n");
  if (line.size() < 12 || !line.starts_with("HTTP/1.")) return reply;
  reply.status = std::stoi(line.substr(9, 3));
  while ((line = read_until("\r\n")).size() > 2) {
    const size_t colon = line.find(": ");
    std::string name = line.substr(0, colon);
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
    reply.headers[name] = line.substr(colon + 2, line.size() - colon - 4);
  }
  if (head || reply.status == 100 || reply.status == 204) return reply;
  if (reply.headers.contains("content-length")) {
    reply.body = take(std::stoul(reply.headers["content-length"]));
  } else if (reply.headers.contains("transfer-encoding")) {
    while (true) {
      const std::string size_line = read_until("\r\n");
      const size_t size = size_line.empty() ? 0 : std::stoul(size_line, nullptr, 16);
      const std::string chunk = take(size + 2);
      if (size == 0 || chunk.size() < size + 2) break;
      reply.body.append(chunk, 0, size);
    }
  } else {
    while (fill()) continue;
    reply.body = std::exchange(buffer_, {});
  }
  return reply;
}

HttpReply HttpClient::call(std::string_view method, std::string_view target, std::string_view body,
                           std::string_view headers) {
  send(http_request(method, target, body, headers));
  return read_reply(method == "HEAD");
}

bool HttpClient::at_end() { return buffer_.empty() && !fill(); }

}  // namespace motley::testing
