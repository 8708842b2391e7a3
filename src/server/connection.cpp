#include "server/connection.hpp"

#include <algorithm>
#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/post.hpp>
#include <boost/beast/core/string.hpp>
#include <limits>
#include <new>
#include <utility>

#include "base/limits.hpp"
#include "base/log.hpp"
#include "base/memory_patience.hpp"

namespace motley {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;

constexpr size_t kReadBytes = 16u << 10;          // one read asks for so many
constexpr size_t kUnparsedBytesMax = 64u << 10;   // pipelined requests, or one unfinished line of a chunked body
constexpr size_t kInlineBodyBytesMax = 4u << 10;  // larger bodies are parsed and tokenised beside the I/O thread
constexpr size_t kQuickBodyBytesMax = 4u << 10;   // of routes that look at no body, or at names alone
constexpr size_t kTextBodyBytesMax = 8u << 20;    // of tokenize and detokenize

ApiError timeout_error(std::string_view what) {
  return {408, fmt::format("the request's {} came too slowly", what), "invalid_request_error", {}, "request_timeout"};
}

ApiError header_too_large() {
  return {431,
          fmt::format("the request's header exceeds {} bytes", limits::kRequestHeaderBytesMax),
          "invalid_request_error",
          {},
          "header_too_large"};
}

ApiError body_too_large(size_t bytes_max) {
  return {413,
          fmt::format("the request's body exceeds {} bytes", bytes_max),
          "invalid_request_error",
          {},
          "body_too_large"};
}

ApiError too_many_bodies() { return {503, "too many large requests at once; retry later", "server_error", {}, {}}; }

size_t body_bytes_max(const Route& route, const ServerOptions& options) {
  switch (Api::kind_of(route, "")) {
    case RouteKind::kQuick:
    case RouteKind::kDevices:
    case RouteKind::kChange: return std::min(options.body_bytes_max, kQuickBodyBytesMax);
    case RouteKind::kText: return std::min(options.body_bytes_max, kTextBodyBytesMax);
    case RouteKind::kWork: break;
  }
  return options.body_bytes_max;
}

}  // namespace

Connection::Connection(asio::ip::tcp::socket socket, ConnectionHost& host)
    : socket_(std::move(socket)), host_(host), body_charge_(host.body_budget()), timer_(socket_.get_executor()) {}

template <typename Work>
void Connection::guarded(Work work) noexcept {
  try {
    work();
  } catch (const std::bad_alloc&) {
    log_error("no memory for a client's request: it is given up");
    give_up();
  }
}

// Whatever has come of the request is freed for the answer, if one can still be given.
void Connection::give_up() noexcept {
  const bool unanswered = state_ == State::kWorking && !answer_begun_;
  if (state_ != State::kHeader && state_ != State::kBody && !unanswered) return close();
  if (const auto generation = std::exchange(generation_, nullptr)) generation->cancel();
  try {
    refuse(host_.no_memory());
  } catch (const std::bad_alloc&) {
    close();
  }
}

void Connection::start() {
  guarded([this] {
    begin_request();
    // A connection that has not said anything yet gets no more time than a header.
    if (state_ == State::kIdle) set_read_deadline(std::chrono::steady_clock::now() + host_.options().header_timeout);
  });
}

void Connection::stop() {
  guarded([this] { end_with_word(); });
}

void Connection::end_with_word() {
  stopping_ = true;
  wire_.keep_alive = false;
  switch (state_) {
    case State::kIdle: return close();
    case State::kHeader:
    case State::kBody: return refuse(draining_error());
    case State::kWorking:
      if (const auto generation = generation_) return generation->stop();
      return send_answer(error_response(draining_error()));
    case State::kReplying:
    case State::kLingering:
    case State::kClosed: return;
  }
}

void Connection::begin_request() {
  parser_.emplace();
  parser_->header_limit(limits::kRequestHeaderBytesMax);
  parser_->body_limit(host_.options().body_bytes_max);
  parser_->eager(false);
  request_ = {};
  header_bytes_ = 0;
  route_ = nullptr;
  wire_ = {};
  answer_begun_ = answer_complete_ = false;
  skip_empty_lines();
  const auto now = std::chrono::steady_clock::now();
  if (buffer_.size() > 0) {
    state_ = State::kHeader;
    set_read_deadline(now + host_.options().header_timeout);
    return parse();
  }
  if (input_ended_) return close();
  state_ = State::kIdle;
  set_read_deadline(now + host_.options().idle_timeout);
  start_read();
}

void Connection::start_read() {
  if (reading_ || state_ == State::kClosed) return;
  if (input_ended_) return on_end_of_input();
  socket_.async_read_some(buffer_.prepare(kReadBytes), [self = shared_from_this()](ErrorCode error, size_t bytes) {
    self->guarded([&] { self->on_read(error, bytes); });
  });
  reading_ = true;  // only now: starting one may find no memory
}

void Connection::on_read(ErrorCode error, size_t bytes) {
  reading_ = false;
  if (state_ == State::kClosed) return;
  buffer_.commit(bytes);
  if (error) {
    input_ended_ = true;
    return on_end_of_input();
  }
  switch (state_) {
    case State::kIdle:
      skip_empty_lines();
      if (buffer_.size() == 0) return start_read();
      state_ = State::kHeader;
      set_read_deadline(std::chrono::steady_clock::now() + host_.options().header_timeout);
      return parse();
    case State::kHeader:
    case State::kBody: return parse();
    case State::kWorking:
    case State::kReplying: return read_ahead();
    case State::kLingering: buffer_.consume(buffer_.size()); return start_read();
    case State::kClosed: return;
  }
}

// Only a socket that is read tells of a client that leaves. What comes meanwhile is kept for the next request, but not
// without bound, and to read no more would be to run for a client that may be gone.
void Connection::read_ahead() {
  if (buffer_.size() < kUnparsedBytesMax) return start_read();
  if (state_ != State::kWorking) return;  // nothing runs that a leaving client would waste
  log_warning("a client sent {} bytes beyond a request that is still being answered: cancelled", buffer_.size());
  close();
}

// An answer that is ready still goes out to a client that has only closed its sending half; one that must first be
// generated does not: the client is taken to be gone.
void Connection::on_end_of_input() {
  if (state_ != State::kReplying) close();
}

void Connection::parse() {
  while (true) {
    if (!parser_->is_header_done() && !parse_header()) return;
    if (parser_->is_done()) return on_request();
    if (!parse_body()) return;
  }
}

// Before a request line empty lines do not count (RFC 9112, 2.2): old clients end a body with one.
void Connection::skip_empty_lines() {
  const auto begins_with_one = [this] {
    const auto* bytes = static_cast<const char*>(buffer_.data().data());
    return buffer_.size() >= 2 && bytes[0] == '\r' && bytes[1] == '\n';
  };
  while (begins_with_one()) buffer_.consume(2);
}

// True: the header is there and accepted.
bool Connection::parse_header() {
  if (!parser_->got_some()) {
    skip_empty_lines();
    const bool half_a_line = buffer_.size() == 1 && *static_cast<const char*>(buffer_.data().data()) == '\r';
    if (buffer_.size() == 0 || half_a_line) {
      start_read();
      return false;
    }
  }
  ErrorCode error;
  const size_t used = parser_->put(buffer_.data(), error);
  buffer_.consume(used);
  header_bytes_ += used;
  // The parser's own limit is of what it has not understood yet.
  const bool too_large = error == http::error::header_limit || header_bytes_ > limits::kRequestHeaderBytesMax;
  if (!error && !too_large) return on_header();
  if (too_large) {
    refuse(header_too_large());
  } else if (error == http::error::need_more) {
    start_read();
  } else {
    refuse_parse(error);
  }
  return false;
}

// True: something was parsed.
bool Connection::parse_body() {
  if (buffer_.size() == 0) {
    start_read();
    return false;
  }
  ErrorCode error;
  buffer_.consume(parser_->put(buffer_.data(), error));
  if (!charge_body()) {
    refuse(too_many_bodies());
    return false;
  }
  if (error && error != http::error::need_more) {
    refuse_parse(error);
    return false;
  }
  if (error == http::error::need_more && buffer_.size() >= kUnparsedBytesMax) {
    refuse(bad_request("", "a chunk's header or the trailer is too long"));
    return false;
  }
  set_body_deadline();
  if (error != http::error::need_more) return true;
  start_read();
  return false;
}

// False: no room for what has come. Where room is short the largest unfinished body gives way, so that a few large
// ones, however slowly they come, never keep out the small.
bool Connection::charge_body() {
  const size_t bytes = parser_->get().body().size();
  while (!body_charge_.grow_to(bytes)) {
    if (!host_.drop_larger_body(bytes)) return false;
  }
  return true;
}

void Connection::give_way() {
  guarded([this] { refuse(too_many_bodies()); });
}

// What a header may ask for and not get. Of a body whose end is in doubt nothing may be read as a next request
// (RFC 9112, 6.1 and 6.3).
std::optional<ApiError> Connection::header_fault() const {
  const auto& message = parser_->get();
  const auto codings = message.count(http::field::transfer_encoding);
  const bool chunked = codings == 1 && wire_.minor_version == 1 &&
                       boost::beast::iequals(message[http::field::transfer_encoding], "chunked");
  if (codings > 0 && !chunked) {
    return bad_request("", "the only Transfer-Encoding understood is \"chunked\", in HTTP/1.1");
  }
  const auto expect = message[http::field::expect];
  if (!expect.empty() && !boost::beast::iequals(expect, "100-continue")) {
    return ApiError{417, "only \"Expect: 100-continue\" is understood", "invalid_request_error", {}, {}};
  }
  return std::nullopt;
}

// False: refused. The body is not read before the header has been found good.
bool Connection::on_header() {
  const auto& message = parser_->get();
  request_.method = std::string(message.method_string());
  request_.target = std::string(message.target());
  request_.authorization = std::string(message[http::field::authorization]);
  wire_.minor_version = message.version() == 10 ? 0 : 1;
  wire_.keep_alive = message.keep_alive();
  wire_.head_only = message.method() == http::verb::head;
  if (const std::optional<ApiError> fault = header_fault()) {
    refuse(*fault);
    return false;
  }
  if (std::optional<HttpResponse> response = host_.api().check(request_, host_.state().draining, route_)) {
    if (parser_->is_done()) {
      send_answer(*std::move(response));
    } else {
      refuse(*response);
    }
    return false;
  }
  const size_t bytes_max = body_bytes_max(*route_, host_.options());
  if (parser_->content_length().value_or(0) > bytes_max) {
    refuse(body_too_large(bytes_max));
    return false;
  }
  parser_->body_limit(bytes_max);
  const bool waits = message.count(http::field::expect) > 0 && !parser_->is_done() && buffer_.size() == 0;
  if (waits && wire_.minor_version == 1) queue("HTTP/1.1 100 Continue\r\n\r\n");
  state_ = State::kBody;
  parser_->eager(true);
  body_begun_ = std::chrono::steady_clock::now();
  set_body_deadline();
  return true;
}

void Connection::on_request() {
  set_read_deadline(TimePoint::max());
  const ServerState state = host_.state();
  state_ = State::kWorking;
  counted_ = true;
  host_.request_begun();
  request_.body = std::move(parser_->get().body());
  BodyCharge charge = std::move(body_charge_);
  const RouteKind kind = Api::kind_of(*route_, request_.method);
  if (kind == RouteKind::kQuick) return send_answer(host_.api().answer(*route_, request_, state));
  if (state.draining && Api::is_new_work(kind)) return send_answer(error_response(draining_error()));
  const bool waits = kind == RouteKind::kDevices || kind == RouteKind::kChange;
  if (!waits && request_.body.size() <= kInlineBodyBytesMax) {
    on_prepared(host_.api().prepare(*route_, request_.method, request_.body));
    return read_ahead();
  }
  // Shared: jobs are copyable.
  auto job =
      std::make_shared<BodyJob>(BodyJob{request_.method, std::move(request_.body), std::move(charge), std::nullopt});
  const bool accepted =
      host_.run_on_worker(kind, [self = shared_from_this(), job, route = route_] { self->run_job(job, *route); });
  if (!accepted) {
    return send_answer(
        error_response({503, "too many requests of this kind wait; retry later", "server_error", {}, {}}));
  }
  read_ahead();
}

void Connection::run_job(const std::shared_ptr<BodyJob>& job, const Route& route) noexcept {
  if (gone_) return;
  try {
    job->prepared = host_.api().prepare(route, job->method, job->body);
  } catch (const std::bad_alloc&) {
    job->prepared.reset();
  }
  std::string().swap(job->body);  // before the answer: its client's next request finds the room free
  job->charge.release();
  const auto tell = [&] {
    asio::post(socket_.get_executor(), [self = shared_from_this(), job] {
      self->guarded([&] { self->on_prepared(std::move(job->prepared)); });
    });
  };
  while (!gone_) {  // the client waits for this word
    try {
      return retry_for_memory(tell);
    } catch (const std::bad_alloc&) {
      log_error("no memory to answer a client: tried again");
    }
  }
}

void Connection::on_prepared(std::optional<Prepared> prepared) {
  if (state_ != State::kWorking) return;  // closed, or already answered because the server stops
  if (!prepared) return give_up();
  if (auto* response = std::get_if<HttpResponse>(&*prepared)) return send_answer(std::move(*response));
  if (auto* devices = std::get_if<PreparedMetrics>(&*prepared))
    return send_answer(host_.api().metrics(std::move(*devices)));
  auto started = host_.api().start(std::get<PreparedGeneration>(*std::move(prepared)), *this);
  if (auto* response = std::get_if<HttpResponse>(&started)) return send_answer(std::move(*response));
  generation_ = std::get<std::shared_ptr<Generation>>(std::move(started));
}

void Connection::refuse_parse(ErrorCode error) {
  if (error == http::error::body_limit) {
    return refuse(body_too_large(route_ ? body_bytes_max(*route_, host_.options()) : host_.options().body_bytes_max));
  }
  refuse(bad_request("", "this is not HTTP/1.0 or HTTP/1.1: {}", error.message()));
}

void Connection::refuse(const HttpResponse& response) {
  wire_.keep_alive = false;
  std::string().swap(parser_->get().body());
  body_charge_.release();
  send_answer(response);
}

void Connection::send_answer(HttpResponse response) {
  if (state_ == State::kClosed) return;
  generation_.reset();
  state_ = State::kReplying;
  answer_complete_ = true;
  if (host_.state().draining) wire_.keep_alive = false;
  guarded([&] {
    set_read_deadline(TimePoint::max());
    queue(serialize(response, wire_));
  });
}

void Connection::begin_stream() {
  if (wire_.minor_version == 0 || host_.state().draining) wire_.keep_alive = false;
  queue(serialize_stream_header(wire_));
  answer_begun_ = true;
}

void Connection::send_events(std::string events) {
  if (state_ == State::kClosed) return;
  guarded([&] { queue(stream_frame(events, wire_)); });
  if (state_ == State::kClosed) return;
  if (unsent() <= host_.options().stream_buffer_bytes_max || backlog_deadline_ != TimePoint::max()) return;
  // However much one delivery brings, the client is judged by what it takes of it.
  backlog_ = std::numeric_limits<size_t>::max();
  backlog_deadline_ = std::chrono::steady_clock::now() + host_.options().stream_check_period;
  guarded([this] { arm(); });
}

// False: the client does not keep up. As long as too much waits, it must have become less at every look.
bool Connection::check_backlog() {
  const size_t waiting = unsent();
  backlog_deadline_ = TimePoint::max();
  if (waiting <= host_.options().stream_buffer_bytes_max) return true;
  if (waiting >= backlog_) {
    log_warning("a client does not read its stream ({} bytes wait): cancelled", waiting);
    close();
    return false;
  }
  backlog_ = waiting;
  backlog_deadline_ = std::chrono::steady_clock::now() + host_.options().stream_check_period;
  return true;
}

void Connection::end_stream() {
  if (state_ == State::kClosed) return;
  generation_.reset();
  state_ = State::kReplying;
  answer_complete_ = true;
  guarded([&] { queue(stream_end(wire_)); });
}

void Connection::queue(std::string_view bytes) {
  pending_ += bytes;
  if (!write_active_) start_write();
}

void Connection::start_write() {
  if (pending_.empty()) {  // an HTTP/1.0 stream ends with nothing
    if (answer_complete_) {
      asio::post(socket_.get_executor(), [self = shared_from_this()] { self->guarded([&] { self->on_answered(); }); });
    }
    return;
  }
  writing_.clear();
  writing_.swap(pending_);
  written_ = 0;
  write_more();
  write_active_ = true;
}

void Connection::write_more() {
  write_deadline_ = std::chrono::steady_clock::now() + host_.options().write_timeout;
  arm();
  socket_.async_write_some(asio::buffer(writing_.data() + written_, writing_.size() - written_),
                           [self = shared_from_this()](ErrorCode error, size_t bytes) {
                             self->guarded([&] { self->on_written(error, bytes); });
                           });
}

void Connection::on_written(ErrorCode error, size_t bytes) {
  if (state_ == State::kClosed) return;
  if (error) return close();
  written_ += bytes;
  if (written_ < writing_.size()) return write_more();
  write_active_ = false;
  write_deadline_ = TimePoint::max();
  if (!pending_.empty()) return start_write();
  if (answer_complete_) on_answered();
}

void Connection::on_answered() {
  if (state_ != State::kReplying) return;
  end_request();
  if (wire_.keep_alive && !stopping_) return begin_request();
  // Closing with unread bytes would reset the connection and take the answer from the client's hands.
  ErrorCode ignored;
  if (input_ended_ || (stopping_ && socket_.available(ignored) == 0)) return close();
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
  state_ = State::kLingering;
  buffer_.consume(buffer_.size());
  set_read_deadline(std::chrono::steady_clock::now() + host_.options().linger_timeout);
  start_read();
}

void Connection::end_request() {
  body_charge_.release();
  if (std::exchange(counted_, false)) host_.request_ended();
}

void Connection::close() {
  if (state_ == State::kClosed) return;
  state_ = State::kClosed;
  gone_ = true;
  ErrorCode ignored;
  socket_.close(ignored);
  timer_.cancel();
  if (const auto generation = std::exchange(generation_, nullptr)) generation->cancel();
  end_request();
  host_.connection_closed(shared_from_this());
}

void Connection::set_read_deadline(TimePoint deadline) {
  read_deadline_ = deadline;
  arm();
}

// A body may take its grace, and beyond it must keep up the least rate; it may never pause for longer than the grace.
void Connection::set_body_deadline() {
  const std::chrono::milliseconds grace = host_.options().body_timeout;
  const std::chrono::milliseconds earned(body_charge_.bytes() * 1000 /
                                         std::max<uint32_t>(host_.options().body_bytes_per_s_min, 1));
  set_read_deadline(std::min(body_begun_ + earned, std::chrono::steady_clock::now()) + grace);
}

// One timer for all deadlines. Later deadlines leave it as it is: on_timer() looks again.
void Connection::arm() {
  const TimePoint next = std::min({read_deadline_, write_deadline_, backlog_deadline_});
  if (next >= armed_ || state_ == State::kClosed) return;
  armed_ = TimePoint::max();  // until the wait is under way: starting it may find no memory
  timer_.expires_at(next);
  timer_.async_wait([self = shared_from_this()](ErrorCode error) {
    if (!error) self->guarded([&] { self->on_timer(); });
  });
  armed_ = next;
}

void Connection::on_timer() {
  armed_ = TimePoint::max();
  if (state_ == State::kClosed) return;
  const TimePoint now = std::chrono::steady_clock::now();
  if (write_deadline_ <= now) return close();
  if (backlog_deadline_ <= now && !check_backlog()) return;
  if (read_deadline_ > now) return arm();
  switch (state_) {
    case State::kHeader: return refuse(timeout_error("header"));
    case State::kBody: return refuse(timeout_error("body"));
    default: return close();
  }
}

}  // namespace motley
