#include "server/server.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>
#include <unordered_set>
#include <utility>

#include "base/bounded_queue.hpp"
#include "base/limits.hpp"
#include "base/log.hpp"
#include "base/memory_patience.hpp"
#include "server/api.hpp"
#include "server/connection.hpp"
#include "server/mailbox.hpp"

namespace motley {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using ErrorCode = boost::system::error_code;

using Jobs = BoundedQueue<std::function<void()>>;

constexpr size_t kWorkerJobsMax = 1024, kDeviceJobsMax = 64;
constexpr uint32_t kDescriptorsReserved = 64;          // for files, devices and the listening socket
constexpr std::chrono::milliseconds kAcceptPause{50};  // after the process ran out of descriptors
constexpr std::chrono::milliseconds kLastWords{200};   // for what is still to be sent when the server ends

// Raises the soft limit as far as allowed, and gives the number of connections that it leaves room for.
uint32_t connections_possible(uint32_t wanted) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return wanted;
  const rlim_t needed = static_cast<rlim_t>(wanted) + kDescriptorsReserved;
  if (limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < needed) {
    limit.rlim_cur = limit.rlim_max == RLIM_INFINITY ? needed : std::min<rlim_t>(needed, limit.rlim_max);
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0 && getrlimit(RLIMIT_NOFILE, &limit) != 0) return wanted;
  }
  if (limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur >= needed) return wanted;
  return limit.rlim_cur > kDescriptorsReserved ? static_cast<uint32_t>(limit.rlim_cur - kDescriptorsReserved) : 1;
}

Code code_of(const ErrorCode& error) {
  if (error == asio::error::address_in_use) return MOTLEY_ALREADY_EXISTS;
  if (error == asio::error::access_denied) return MOTLEY_PERMISSION_DENIED;
  return MOTLEY_INVALID_ARGUMENT;
}

std::string_view remedy_of(const ErrorCode& error) {
  if (error == asio::error::address_in_use) return "another program holds it; choose another --port";
  if (error == asio::error::access_denied) return "ports below 1024 need privileges; choose another --port";
  return "give --host an address of this machine";
}

}  // namespace

class Server::Impl : public ConnectionHost {
 public:
  Impl(Engine& engine, const Tokenizer& tokenizer, const ChatTemplate* chat_template, ServerOptions options)
      : options_(std::move(options)),
        body_budget_(options_.body_bytes_in_flight_max),
        mailbox_(std::make_shared<Mailbox>([this] { asio::post(io_, [this] { mailbox_->deliver(); }); })),
        api_(engine, tokenizer, chat_template, options_, mailbox_) {}
  ~Impl() override;

  Status listen();
  void run();
  uint16_t port() const { return port_; }
  size_t body_bytes_in_flight() const { return body_budget_.used(); }
  void begin_drain() { draining_ = true; }
  Status wait_drained(std::chrono::milliseconds timeout);

  const ServerOptions& options() const override { return options_; }
  const HttpResponse& no_memory() const override { return no_memory_; }
  Api& api() override { return api_; }
  ServerState state() const override;
  bool run_on_worker(RouteKind kind, std::function<void()> job) override {
    return jobs_of(kind).try_push(std::move(job));
  }
  BodyBudget& body_budget() override { return body_budget_; }
  bool drop_larger_body(size_t bytes) override;
  void request_begun() override;
  void request_ended() override;
  void connection_closed(const std::shared_ptr<Connection>& connection) noexcept override;

 private:
  void accept();
  void on_accepted(tcp::socket socket);
  void serve();
  void work(Jobs& jobs);
  Jobs& jobs_of(RouteKind kind);
  void stop();
  void end();

  const ServerOptions options_;
  const HttpResponse no_memory_ =
      error_response({503, "no memory for a request of this size; retry later", "server_error", {}, {}});
  BodyBudget body_budget_;  // outlives the connections and jobs, which hold parts of it
  asio::io_context io_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_guard_ = asio::make_work_guard(io_);
  tcp::acceptor acceptor_{io_};
  asio::steady_timer accept_pause_{io_}, last_words_{io_};
  bool accepting_ = false;  // accept() or its pause is under way
  uint16_t port_ = 0;
  std::shared_ptr<Mailbox> mailbox_;  // shared with the engine's requests
  Api api_;
  Jobs generation_jobs_{kWorkerJobsMax}, text_jobs_{kWorkerJobsMax};
  Jobs device_jobs_{kDeviceJobsMax}, change_jobs_{kDeviceJobsMax};
  std::unordered_set<std::shared_ptr<Connection>> connections_;  // shared with their pending operations
  bool unswept_ = false;  // there was no memory to take a closed one out of connections_
  std::atomic<bool> draining_{false}, stopping_{false};

  mutable std::mutex mutex_;  // guards the next two
  std::condition_variable drained_;
  size_t active_ = 0;  // requests being answered

  std::vector<std::thread> threads_;
};

Server::Impl::~Impl() {
  stopping_ = true;
  for (Jobs* jobs : {&generation_jobs_, &text_jobs_, &device_jobs_, &change_jobs_}) jobs->close();
  retry_for_memory([this] { asio::post(io_, [this] { stop(); }); });
  for (std::thread& thread : threads_) thread.join();
  mailbox_->close();  // where listen() failed, no thread ran stop()
}

// Tells every client that its answer ends here, and leaves them a moment to hear it.
void Server::Impl::stop() {
  const MemoryPatience patience;
  ErrorCode ignored;
  acceptor_.close(ignored);
  accept_pause_.cancel();
  mailbox_->deliver();
  mailbox_->close();
  const auto connections = connections_;
  for (const auto& connection : connections) connection->stop();
  if (connections_.empty()) return end();
  last_words_.expires_after(kLastWords);
  retry_for_memory([this] { last_words_.async_wait([this](ErrorCode) { end(); }); });
}

void Server::Impl::end() {
  const MemoryPatience patience;
  const auto connections = connections_;
  for (const auto& connection : connections) connection->close();
  io_.stop();
}

Status Server::Impl::listen() {
  const std::string where = fmt::format("{}:{}", options_.host, options_.port);
  ErrorCode error;
  const auto found = tcp::resolver(io_).resolve(options_.host, std::to_string(options_.port),
                                                tcp::resolver::passive | tcp::resolver::numeric_service, error);
  if (error || found.empty()) {
    return invalid_argument("{}: no such address ({}); give --host an address of this machine", where, error.message());
  }
  const tcp::endpoint endpoint = found.begin()->endpoint();
  acceptor_.open(endpoint.protocol(), error);
  if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor_.bind(endpoint, error);
  if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
  if (error)
    return motley::error(code_of(error), "{}: cannot listen ({}); {}", where, error.message(), remedy_of(error));
  port_ = acceptor_.local_endpoint(error).port();
  return ok_status();
}

void Server::Impl::run() {
  accept();
  threads_.emplace_back([this] { serve(); });
  for (uint32_t i = 0; i < std::max<uint32_t>(options_.worker_threads, 1); ++i)
    threads_.emplace_back([this] { work(generation_jobs_); });
  for (Jobs* jobs : {&text_jobs_, &device_jobs_, &change_jobs_}) threads_.emplace_back([this, jobs] { work(*jobs); });
}

// A connection sees to its own lack of memory; what is thrown here came from between two of them.
void Server::Impl::serve() {
  bool pause = false;
  while (!io_.stopped()) {
    try {
      if (std::exchange(pause, false)) io_.run_for(kAcceptPause);
      if (!accepting_ && acceptor_.is_open()) accept();
      io_.run();
    } catch (const std::bad_alloc&) {
      log_error("no memory for a client: it is given up");
      pause = true;  // before the next client others give memory back
    }
  }
}

Jobs& Server::Impl::jobs_of(RouteKind kind) {
  switch (kind) {
    case RouteKind::kText: return text_jobs_;
    case RouteKind::kDevices: return device_jobs_;
    case RouteKind::kChange: return change_jobs_;
    default: return generation_jobs_;
  }
}

void Server::Impl::work(Jobs& jobs) {
  while (std::optional<std::function<void()>> job = jobs.pop()) {
    if (!stopping_) (*job)();
  }
}

void Server::Impl::accept() {
  acceptor_.async_accept([this](ErrorCode error, tcp::socket socket) {
    accepting_ = false;
    if (!acceptor_.is_open()) return;
    if (!error) {
      accept();
      return on_accepted(std::move(socket));
    }
    // Out of descriptors, most likely: trying again at once would spin.
    accept_pause_.expires_after(kAcceptPause);
    accept_pause_.async_wait([this](ErrorCode cancelled) {
      accepting_ = false;
      if (!cancelled) accept();
    });
    accepting_ = true;
  });
  accepting_ = true;
}

void Server::Impl::on_accepted(tcp::socket socket) {
  ErrorCode ignored;
  if (std::exchange(unswept_, false)) std::erase_if(connections_, [](const auto& c) { return c->closed(); });
  socket.set_option(tcp::no_delay(true), ignored);
  if (options_.send_buffer_bytes > 0) {
    socket.set_option(asio::socket_base::send_buffer_size(options_.send_buffer_bytes), ignored);
  }
  if (connections_.size() >= options_.connections_max) {
    const HttpResponse response = error_response({503, "too many connections; retry later", "server_error", {}, {}});
    socket.non_blocking(true, ignored);
    socket.write_some(asio::buffer(serialize(response, {1, false, false})), ignored);
    socket.shutdown(tcp::socket::shutdown_send, ignored);
    return;
  }
  auto connection = std::make_shared<Connection>(std::move(socket), *this);
  connections_.insert(connection);
  connection->start();
}

ServerState Server::Impl::state() const {
  std::lock_guard lock(mutex_);
  return {draining_, active_};
}

bool Server::Impl::drop_larger_body(size_t bytes) {
  std::shared_ptr<Connection> largest;
  for (const auto& connection : connections_) {
    if (connection->unfinished_body_bytes() <= bytes) continue;
    bytes = connection->unfinished_body_bytes();
    largest = connection;
  }
  if (!largest) return false;
  largest->give_way();
  return true;
}

void Server::Impl::request_begun() {
  std::lock_guard lock(mutex_);
  ++active_;
}

void Server::Impl::request_ended() {
  std::lock_guard lock(mutex_);
  if (--active_ == 0) drained_.notify_all();
}

// Later: whoever closed it may still stand in one of its functions.
void Server::Impl::connection_closed(const std::shared_ptr<Connection>& connection) noexcept {
  try {
    asio::post(io_, [this, connection] {
      connections_.erase(connection);
      if (stopping_ && connections_.empty()) end();
    });
  } catch (const std::bad_alloc&) {
    unswept_ = true;
  }
}

Status Server::Impl::wait_drained(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  if (drained_.wait_for(lock, timeout, [this] { return active_ == 0; })) return ok_status();
  return error(MOTLEY_DEADLINE_EXCEEDED, "{} requests are still being answered", active_);
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Server::~Server() = default;

Result<std::unique_ptr<Server>> Server::start(Engine& engine, const Tokenizer& tokenizer,
                                              const ChatTemplate* chat_template, ServerOptions options) {
  if (options.served_model_names.empty()) options.served_model_names.push_back(options.model_path);
  if (options.body_bytes_max == 0) options.body_bytes_max = limits::kRequestBodyBytesMax;
  options.connections_max = connections_possible(std::max<uint32_t>(options.connections_max, 1));
  auto impl = std::make_unique<Impl>(engine, tokenizer, chat_template, std::move(options));
  RETURN_IF_ERROR(impl->listen());
  impl->run();
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

uint16_t Server::port() const { return impl_->port(); }
size_t Server::body_bytes_in_flight() const { return impl_->body_bytes_in_flight(); }
void Server::begin_drain() { impl_->begin_drain(); }
Status Server::wait_drained(std::chrono::milliseconds timeout) { return impl_->wait_drained(timeout); }

}  // namespace motley
