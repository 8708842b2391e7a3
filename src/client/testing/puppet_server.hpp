// PuppetServer: says exactly what a test tells it to, over a real socket, one connection after another.
#pragma once

#include <cstdint>
#include <string>
#include <thread>
#include <vector>

namespace motley::testing {

struct PuppetAnswer {
  enum End { kKeep, kClose, kReset };  // what becomes of the connection then
  std::string bytes;
  End end = kKeep;
};

// A whole answer with this body.
std::string puppet_reply(std::string_view status_line, std::string_view body);
// The head of a stream in chunks, and one chunk of it.
std::string puppet_stream_head();
std::string puppet_chunk(std::string_view data);

class PuppetServer {
 public:
  // Answers one request after another with these, then closes.
  explicit PuppetServer(std::vector<PuppetAnswer> answers);
  // The client must be gone, or all answers given.
  ~PuppetServer();
  PuppetServer(const PuppetServer&) = delete;
  PuppetServer& operator=(const PuppetServer&) = delete;

  uint16_t port() const { return port_; }
  // Joins the thread: all answers must have been asked for. Whole requests, in order.
  const std::vector<std::string>& requests();
  int connections();

 private:
  void serve();
  bool answer(int client, const PuppetAnswer& with);

  const std::vector<PuppetAnswer> answers_;
  int listener_ = -1;
  uint16_t port_ = 0;
  int connections_ = 0;
  std::vector<std::string> requests_;
  std::thread thread_;
};

}  // namespace motley::testing
