// Connection: one socket, its requests one after another.
//
// Everything happens on the server's I/O thread. While a request is being answered the socket is read on, so that a
// client that goes away is noticed and its generation cancelled, and so that pipelined requests wait in the buffer.
#pragma once

#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "server/api.hpp"
#include "server/generation.hpp"
#include "server/http.hpp"
#include "server/request_body.hpp"
#include "server/server.hpp"

namespace motley {

class Connection;

// A body on its way to a worker, and what comes of it. Made before: the worker that finds no memory needs none to say
// so.
struct BodyJob {
  std::string method, body;
  BodyCharge charge;
  std::optional<Prepared> prepared;  // none: there was no memory for it
};

// What a connection needs of the server. On the I/O thread, but for what run_on_worker() runs.
class ConnectionHost {
 public:
  virtual ~ConnectionHost() = default;
  virtual const ServerOptions& options() const = 0;
  virtual Api& api() = 0;
  // Made when there was memory.
  virtual const HttpResponse& no_memory() const = 0;
  virtual ServerState state() const = 0;
  // False: too much of this kind waits already.
  virtual bool run_on_worker(RouteKind kind, std::function<void()> job) = 0;
  virtual BodyBudget& body_budget() = 0;
  // Refuses the request whose unfinished body is the largest. False: none has more than `bytes`.
  virtual bool drop_larger_body(size_t bytes) = 0;
  virtual void request_begun() = 0;
  virtual void request_ended() = 0;
  virtual void connection_closed(const std::shared_ptr<Connection>& connection) noexcept = 0;
};

class Connection : public std::enable_shared_from_this<Connection>, private AnswerSink {
 public:
  Connection(boost::asio::ip::tcp::socket socket, ConnectionHost& host);

  void start();
  // At once, without another word. Cancels what runs.
  void close();
  // Ends what runs with the word that the server stops, and closes when that is sent.
  void stop();
  // Of a request that is still being read.
  size_t unfinished_body_bytes() const { return state_ == State::kBody ? body_charge_.bytes() : 0; }
  // Refuses such a request, so that smaller ones find room.
  void give_way();
  bool closed() const { return state_ == State::kClosed; }

 private:
  using TimePoint = std::chrono::steady_clock::time_point;
  using ErrorCode = boost::system::error_code;
  enum class State {
    kIdle,  // nothing of a request has come
    kHeader,
    kBody,
    kWorking,    // the request is whole; its answer is being made (a stream: being sent)
    kReplying,   // the last of the answer is on its way out
    kLingering,  // answered and half closed; what the client still sends is thrown away
    kClosed
  };

  // Memory that a request asks for may not be there: then this request ends, and the others are served on.
  template <typename Work>
  void guarded(Work work) noexcept;
  void give_up() noexcept override;

  // Reading.
  void begin_request();
  void end_with_word();
  void start_read();
  void on_read(ErrorCode error, size_t bytes);
  void read_ahead();
  void on_end_of_input();
  void parse();
  void skip_empty_lines();
  bool parse_header();
  bool parse_body();
  bool charge_body();
  bool on_header();
  std::optional<ApiError> header_fault() const;
  void on_request();
  // On a worker.
  void run_job(const std::shared_ptr<BodyJob>& job, const Route& route) noexcept;
  void on_prepared(std::optional<Prepared> prepared);
  void refuse_parse(ErrorCode error);

  // Answering.
  void send_answer(HttpResponse response) override;
  void begin_stream() override;
  void send_events(std::string events) override;
  void end_stream() override;
  size_t unsent() const { return pending_.size() + writing_.size() - written_; }
  bool check_backlog();
  // Answers and closes, whatever the client still sends.
  void refuse(const ApiError& error) { refuse(error_response(error)); }
  void refuse(const HttpResponse& response);
  void queue(std::string_view bytes);
  void start_write();
  void write_more();
  void on_written(ErrorCode error, size_t bytes);
  void on_answered();
  void end_request();

  // Time.
  void set_read_deadline(TimePoint deadline);
  void set_body_deadline();
  void arm();
  void on_timer();

  boost::asio::ip::tcp::socket socket_;
  ConnectionHost& host_;
  State state_ = State::kIdle;

  boost::beast::flat_buffer buffer_;
  std::optional<boost::beast::http::request_parser<GrowingBody>> parser_;
  bool reading_ = false, input_ended_ = false;
  HttpRequest request_;
  const Route* route_ = nullptr;
  WireOptions wire_;
  size_t header_bytes_ = 0;
  BodyCharge body_charge_;
  TimePoint body_begun_;

  std::shared_ptr<Generation> generation_;  // shared with the mailbox's weak references
  bool counted_ = false;                    // request_begun() called, request_ended() not yet
  bool answer_begun_ = false;               // of a stream
  bool answer_complete_ = false, stopping_ = false;
  std::atomic<bool> gone_{false};  // closed; read by the workers
  std::string pending_, writing_;
  size_t written_ = 0;  // of writing_
  bool write_active_ = false;

  boost::asio::steady_timer timer_;
  TimePoint read_deadline_ = TimePoint::max(), write_deadline_ = TimePoint::max(), armed_ = TimePoint::max();
  TimePoint backlog_deadline_ = TimePoint::max();  // set while more of a stream waits than may
  size_t backlog_ = 0;                             // what waited at the last look
};

}  // namespace motley
