// Bytes of a client, through one connection of the server, over a real engine without a device.
//
// Input: a byte of kFlags, then the client's bytes in pieces that end with RS (1E); each piece is worked off before the
// next is sent. Whatever they are: answers that are whole HTTP, a connection that ends, and no request left behind.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "base/check.hpp"
#include "engine/engine.hpp"
#include "engine/testing/scripted_executor.hpp"
#include "server/api.hpp"
#include "server/connection.hpp"
#include "server/mailbox.hpp"
#include "server/testing/byte_tokenizer.hpp"
#include "text/chat_template.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

namespace asio = boost::asio;
using asio::ip::tcp;

enum kFlags : uint8_t { kDraining = 1, kLeavesEarly = 2, kServerStops = 4 };
constexpr char kEndOfPiece = '\x1E';

motley::testing::ScriptedOptions script() {
  motley::testing::ScriptedOptions options;
  options.block_size = 16;
  options.blocks = 64;
  options.vocab_size = motley::testing::ByteTokenizer().size();
  options.positions_max = 64;
  return options;
}

motley::ServerOptions server_options() {
  motley::ServerOptions options;
  options.served_model_names = {"m"};
  options.api_keys = {"k"};
  options.body_bytes_max = 16u << 10;
  options.body_bytes_in_flight_max = 12u << 10;
  options.seed = 1;
  return options;
}

template <typename T>
std::unique_ptr<T> must(motley::Result<std::unique_ptr<T>> made) {
  CHECK(made.ok(), "{}", made.error().message());
  return *std::move(made);
}

// The server's surroundings of a connection, on one thread.
class Host final : public motley::ConnectionHost {
 public:
  ~Host() override { mailbox_->close(); }
  const motley::ServerOptions& options() const override { return options_; }
  motley::Api& api() override { return api_; }
  const motley::HttpResponse& no_memory() const override { return no_memory_; }
  motley::ServerState state() const override { return {draining_, active_}; }
  bool run_on_worker(motley::RouteKind /*kind*/, std::function<void()> job) override {
    job();
    return true;
  }
  motley::BodyBudget& body_budget() override { return body_budget_; }
  bool drop_larger_body(size_t /*bytes*/) override { return false; }
  void request_begun() override { ++active_; }
  void request_ended() override {
    CHECK(active_ > 0);
    --active_;
  }
  void connection_closed(const std::shared_ptr<motley::Connection>& /*connection*/) noexcept override {
    closed_ = true;
  }

  // The server's answers to a client that sends this.
  std::string run(uint8_t flags, std::string_view bytes);
  const motley::testing::ScriptedExecutor& executor() const { return executor_; }

 private:
  void settle(int client, std::string* answers);

  const motley::ServerOptions options_ = server_options();
  const motley::HttpResponse no_memory_ = motley::error_response({503, "no memory", "server_error", {}, {}});
  motley::testing::ByteTokenizer tokenizer_;
  motley::testing::ScriptedExecutor executor_{script()};
  std::unique_ptr<motley::Engine> engine_ = must(motley::Engine::create(executor_, {.queue_limit = 16}));
  std::unique_ptr<motley::ChatTemplate> chat_ =
      must(motley::ChatTemplate::create("{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}", "", ""));
  motley::BodyBudget body_budget_{options_.body_bytes_in_flight_max};
  asio::io_context io_{1};
  std::shared_ptr<motley::Mailbox> mailbox_ = std::make_shared<motley::Mailbox>(
      [this] { asio::post(io_, [this] { mailbox_->deliver(); }); });  // shared with the engine's requests
  motley::Api api_{*engine_, tokenizer_, chat_.get(), options_, mailbox_};
  bool draining_ = false, closed_ = false;
  uint64_t active_ = 0;
};

// Until no request is being answered and nothing more comes.
void Host::settle(int client, std::string* answers) {
  char chunk[16384];
  bool more = true;
  while (more || active_ > 0) {
    io_.restart();
    more = (active_ > 0 ? io_.run_one_for(std::chrono::milliseconds(1)) : 0) + io_.poll() > 0;
    for (ssize_t got = 0; (got = recv(client, chunk, sizeof(chunk), MSG_DONTWAIT)) > 0; more = true) {
      answers->append(chunk, static_cast<size_t>(got));
    }
  }
}

std::string Host::run(uint8_t flags, std::string_view bytes) {
  int ends[2];
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  draining_ = (flags & kDraining) != 0;
  closed_ = false;
  tcp::socket socket(io_);
  socket.assign(tcp::v4(), ends[0]);
  auto connection = std::make_shared<motley::Connection>(std::move(socket), *this);
  connection->start();
  std::string answers;
  while (!bytes.empty()) {
    const size_t end = std::min(bytes.find(kEndOfPiece), bytes.size());
    (void)send(ends[1], bytes.data(), end, MSG_NOSIGNAL | MSG_DONTWAIT);
    bytes.remove_prefix(std::min(end + 1, bytes.size()));
    if (!bytes.empty() || (flags & kLeavesEarly) == 0) settle(ends[1], &answers);
  }
  io_.restart();
  io_.poll();
  if ((flags & kServerStops) != 0) connection->stop();
  shutdown(ends[1], SHUT_WR);
  settle(ends[1], &answers);
  CHECK(closed_, "the connection outlives its client");
  CHECK(active_ == 0, "{} requests are left", active_);
  ::close(ends[1]);
  return answers;
}

// Takes a line off the text, without its end. False: there is no whole line.
bool take_line(std::string_view* text, std::string_view* line) {
  const size_t end = text->find("\r\n");
  if (end == std::string_view::npos) return false;
  *line = text->substr(0, end);
  text->remove_prefix(end + 2);
  return true;
}

// Takes a chunked body off the text. False: it is cut off.
bool take_chunks(std::string_view* text) {
  std::string_view line;
  while (take_line(text, &line)) {
    size_t size = 0;
    const auto [end, failure] = std::from_chars(line.data(), line.data() + line.size(), size, 16);
    CHECK(failure == std::errc() && end == line.data() + line.size(), "chunk {}", line);
    if (text->size() < size + 2) return false;
    CHECK(text->substr(size, 2) == "\r\n", "chunk of {}", size);
    text->remove_prefix(size + 2);
    if (size == 0) return true;
  }
  return false;
}

// Takes an answer off the text. False: it is the last, or cut off.
bool take_answer(std::string_view* text) {
  constexpr std::string_view kLength = "Content-Length: ";
  std::string_view line;
  if (!take_line(text, &line)) return false;
  CHECK(line.size() > 13 && line.starts_with("HTTP/1."), "{}", line);
  const bool bodiless = line.substr(9, 3) == "100" || line.substr(9, 3) == "204";
  bool last = line.starts_with("HTTP/1.0"), chunked = false, stream = false;
  size_t length = 0;
  while (take_line(text, &line) && !line.empty()) {
    CHECK(line.find(": ") != std::string_view::npos, "{}", line);
    chunked |= line == "Transfer-Encoding: chunked";
    stream |= line.starts_with("Content-Type: text/event-stream");
    if (line == "Connection: close") last = true;
    if (line == "Connection: keep-alive") last = false;
    if (line.starts_with(kLength)) std::from_chars(line.data() + kLength.size(), line.data() + line.size(), length);
  }
  if (chunked) return take_chunks(text) && !last;
  if (stream || text->size() < length) return false;
  if (!bodiless) text->remove_prefix(length);
  CHECK(!last || text->empty(), "{} bytes follow the last answer", text->size());
  return !last;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr int kInputsOfAHost = 1000;  // the executor remembers every sequence it ran
  static std::unique_ptr<Host> host;
  static int inputs = 0;
  if (size == 0) return 0;
  if (inputs++ % kInputsOfAHost == 0) {
    host.reset();
    host = std::make_unique<Host>();
  }
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::string answers = host->run(data[0], bytes);
  const bool has_head = bytes.find("HEAD") != std::string_view::npos;  // answered without the body that is announced
  for (std::string_view left = answers; !has_head && take_answer(&left);) continue;
  CHECK(host->executor().violations().empty(), "{}", host->executor().violations().front());
  return 0;
}
