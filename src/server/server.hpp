// Server: the OpenAI-compatible HTTP front of one engine.
//
// One thread owns every connection; long prompts are tokenised on a few threads beside it, and what /tokenize is given
// on another, so that one request's size never delays another's tokens; devices are asked and added on two more. The
// engine's news reach it through a mailbox. Idle, all threads sleep. The surface is docs/api.md. Every public method is
// safe from any thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/status.hpp"
#include "engine/request.hpp"
#include "server/metrics.hpp"

namespace motley {

class ChatTemplate;
class Engine;
class Tokenizer;

// What came of a request to add devices.
struct DevicesAdded {
  std::vector<std::string> names;
  std::string note;  // one line for people; "" = nothing to say
};

// What the server asks of whoever has the devices; null = /metrics and /v1/devices tell of none, and none can be added.
// Called on threads of the server's own; may take their time.
struct DeviceControl {
  std::function<std::vector<DeviceCounters>()> list;
  std::function<Result<DevicesAdded>(const std::vector<std::string>& names)> add;
};

struct ServerOptions {
  std::string host = "127.0.0.1";               // a numeric address or a name
  uint16_t port = 0;                            // 0 = any free one; see Server::port()
  std::vector<std::string> api_keys;            // any of them opens the guarded routes; none = open
  std::vector<std::string> served_model_names;  // the first is the one in answers; none = model_path
  std::string model_path;                       // /v1/models "root"
  // Where there is no chat template: why, and what to do; told to clients.
  std::string chat_unavailable = "the model has no chat template; start the server with --chat-template FILE";
  std::string version = "0.0.0";  // /version
  std::optional<uint64_t> seed;   // derives the seeds of requests that bring none; unset = random
  TokenSampling sampling;         // what requests leave out is as here, but max_tokens
  uint32_t max_tokens = 0;        // of one answer, whatever its request asks for; 0 = what the context holds
  std::vector<std::pair<std::string, std::string>> cache_config;  // the labels of vllm:cache_config_info
  DeviceControl devices;

  // Limits. A client that meets one is answered (408, 413, 431, 503) or, with nothing left to say, closed.
  uint32_t connections_max = 4096;                       // lowered to what the process's file descriptors allow
  size_t body_bytes_max = 0;                             // 0 = limits::kRequestBodyBytesMax
  size_t body_bytes_in_flight_max = 512u << 20;          // of all requests' bodies together; the largest gives way
  size_t stream_buffer_bytes_max = 1u << 20;             // unsent bytes of one stream; above, they must become fewer
  std::chrono::milliseconds stream_check_period{1'000};  // from look to look, or its requests are cancelled
  int send_buffer_bytes = 0;                             // the kernel's, per connection; 0 = the kernel's choice
  uint32_t worker_threads = 2;                           // for long prompts
  std::chrono::milliseconds header_timeout{10'000};      // from the first byte (or the connection) to the header's end
  std::chrono::milliseconds idle_timeout{60'000};        // between two requests of a connection
  std::chrono::milliseconds body_timeout{10'000};  // a body's grace and longest pause; it must keep up the rate below
  uint32_t body_bytes_per_s_min = 16u << 10;
  std::chrono::milliseconds write_timeout{30'000};  // a client that takes nothing for so long is gone
  std::chrono::milliseconds linger_timeout{2'000};  // reading on after an early refusal, so that it arrives
};

class Server {
 public:
  // Listens when it returns. `engine`, `tokenizer` and `chat_template` (null: the model has none) are borrowed and
  // outlive the server. Raises the process's soft limit of file descriptors as far as it may.
  // INVALID_ARGUMENT: an address that is none; ALREADY_EXISTS: port busy; PERMISSION_DENIED: port not allowed.
  static Result<std::unique_ptr<Server>> start(Engine& engine, const Tokenizer& tokenizer,
                                               const ChatTemplate* chat_template, ServerOptions options);
  // Cancels what is left of its requests and tells their clients (streams: "abort"; else 503), closes every connection
  // after at most 200 ms, and joins.
  ~Server();

  uint16_t port() const;
  // Bytes of request bodies that it holds: those still coming, and those whose request is being read.
  size_t body_bytes_in_flight() const;
  // From now on new work is answered 503; what runs goes on.
  void begin_drain();
  // Blocks until no request is being answered. DEADLINE_EXCEEDED after `timeout`, with the number left.
  Status wait_drained(std::chrono::milliseconds timeout);

 private:
  class Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace motley
