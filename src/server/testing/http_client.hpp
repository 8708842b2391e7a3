// HttpClient: a blocking HTTP/1.1 client over a raw socket, for tests that must misbehave exactly. Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace motley::testing {

struct HttpReply {
  int status = 0;                              // 0: the connection ended instead
  std::map<std::string, std::string> headers;  // lower-case names
  std::string body;                            // chunks joined
};

std::string http_request(std::string_view method, std::string_view target, std::string_view body = {},
                         std::string_view headers = {});

class HttpClient {
 public:
  // `receive_buffer`: bytes of the kernel's buffer; 0 = its choice.
  explicit HttpClient(uint16_t port, int receive_buffer = 0);
  ~HttpClient();
  HttpClient(HttpClient&& other) noexcept;
  HttpClient& operator=(HttpClient&&) = delete;

  bool connected() const { return socket_ >= 0; }
  // False once the server has reset the connection.
  bool send(std::string_view bytes);
  // Up to and including `mark`; shorter if the connection ends.
  std::string read_until(std::string_view mark);
  HttpReply read_reply(bool head = false);
  // send() and read_reply().
  HttpReply call(std::string_view method, std::string_view target, std::string_view body = {},
                 std::string_view headers = {});
  // Whether the server has nothing more to say.
  bool at_end();
  void finish_sending();
  void close();

 private:
  bool fill();
  std::string take(size_t bytes);

  int socket_ = -1;
  std::string buffer_;
};

}  // namespace motley::testing
