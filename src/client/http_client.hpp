// HttpClient: many HTTP/1.1 calls of one server at once, on one thread.
//
// Connections are kept alive and used again; a call that finds such a one closed by the server, before anything of its
// answer came, is sent once more on a new one. Everything happens inside run(): callbacks may send further calls.
// Plain http only. Not thread-safe.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.hpp"

namespace motley::client {

inline constexpr std::chrono::seconds kConnectTimeout{30};
inline constexpr std::chrono::hours kCallTimeout{6};  // as vLLM's client: a long queue is no error
inline constexpr size_t kReplyBytesMax = 256u << 20;  // of fetch()
inline constexpr uint32_t kAnswerHeaderBytesMax = 64u << 10;

struct ServerAddress {
  std::string host;  // an IPv6 address without brackets
  uint16_t port = 80;
  std::string prefix;        // of every target; "" or "/…" without a slash at its end
  std::string text() const;  // "http://host:port/prefix"
};
// INVALID_ARGUMENT for what is no http://HOST[:PORT][/PREFIX].
Result<ServerAddress> parse_base_url(std::string_view url);

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpCall {
  std::string method, target, body;  // target: without the address's prefix; a body goes as application/json
  std::function<void(int status, std::string_view reason)> on_head;
  std::function<bool(std::string_view bytes)> on_body;  // false: the rest is not wanted; the call ends with CANCELLED
  std::function<void(const Status&)> on_end;            // always, once, last; UNAVAILABLE for what the connection met
};

struct HttpReply {
  int status = 0;
  std::string reason, body;
};

class HttpClient {
 public:
  // Looks the host up. `headers` go with every call. UNAVAILABLE, naming the host, where it has no address;
  // INVALID_ARGUMENT for a header that cannot be one.
  static Result<std::unique_ptr<HttpClient>> create(ServerAddress address, HttpHeaders headers);
  ~HttpClient();

  const ServerAddress& address() const;
  void send(HttpCall call);
  // Runs `job` inside run(), `seconds` from now.
  void after(double seconds, std::function<void()> job);
  // Until no call and no job is left.
  void run();
  // One call from beginning to end; run() runs. Any status of an answer is a reply; errors as of on_end, with the
  // address.
  Result<HttpReply> fetch(std::string method, std::string target, std::string body = {});

 private:
  class Impl;
  explicit HttpClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// As many connections as the process may open, after its soft limit was raised as far as it goes.
uint64_t connections_possible();

}  // namespace motley::client
