#include "client/testing/puppet_server.hpp"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cstdlib>
#include <string_view>
#include <utility>

namespace motley::testing {
namespace {

constexpr int kGiveUpSeconds = 30;  // a client that hangs fails the test instead of hanging it

// One request with its body, or "" where the connection ends.
std::string read_request(int client) {
  constexpr std::string_view kLength = "Content-Length: ";
  std::string request;
  char chunk[4096];
  while (true) {
    const size_t head = request.find("\r\n\r\n");
    if (head != std::string::npos) {
      const size_t at = request.find(kLength);
      const size_t body = at < head ? std::strtoull(request.c_str() + at + kLength.size(), nullptr, 10) : 0;
      if (request.size() >= head + 4 + body) return request;
    }
    const ssize_t got = recv(client, chunk, sizeof(chunk), 0);
    if (got <= 0) return "";
    request.append(chunk, static_cast<size_t>(got));
  }
}

}  // namespace

std::string puppet_reply(std::string_view status_line, std::string_view body) {
  return fmt::format("HTTP/1.1 {}\r\nContent-Length: {}\r\n\r\n{}", status_line, body.size(), body);
}

std::string puppet_stream_head() {
  return "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
}

std::string puppet_chunk(std::string_view data) { return fmt::format("{:x}\r\n{}\r\n", data.size(), data); }

PuppetServer::PuppetServer(std::vector<PuppetAnswer> answers)
    : answers_(std::move(answers)), listener_(socket(AF_INET, SOCK_STREAM, 0)) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  if (bind(listener_, reinterpret_cast<const sockaddr*>(&address), size) != 0 || listen(listener_, 16) != 0 ||
      getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    std::abort();
  }
  port_ = ntohs(address.sin_port);
  thread_ = std::thread([this] { serve(); });
}

PuppetServer::~PuppetServer() {
  shutdown(listener_, SHUT_RDWR);
  if (thread_.joinable()) thread_.join();
  close(listener_);
}

const std::vector<std::string>& PuppetServer::requests() {
  if (thread_.joinable()) thread_.join();
  return requests_;
}

int PuppetServer::connections() {
  requests();
  return connections_;
}

bool PuppetServer::answer(int client, const PuppetAnswer& with) {
  send(client, with.bytes.data(), with.bytes.size(), MSG_NOSIGNAL);
  if (with.end == PuppetAnswer::kReset) {
    const linger now{1, 0};
    setsockopt(client, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
  }
  return with.end == PuppetAnswer::kKeep;
}

void PuppetServer::serve() {
  size_t next = 0;
  while (next < answers_.size()) {
    const int client = accept(listener_, nullptr, nullptr);
    if (client < 0) return;
    ++connections_;
    const timeval patience{kGiveUpSeconds, 0};
    setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    while (next < answers_.size()) {
      std::string request = read_request(client);
      if (request.empty()) break;
      requests_.push_back(std::move(request));
      if (!answer(client, answers_[next++])) break;
    }
    close(client);
  }
}

}  // namespace motley::testing
