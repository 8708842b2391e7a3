#include "client/http_client.hpp"

#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/buffers_range.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <boost/optional.hpp>
#include <charconv>
#include <optional>

#include "base/quote.hpp"

namespace motley::client {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;
using ErrorCode = boost::system::error_code;

constexpr uint64_t kDescriptorsReserved = 64;
constexpr double kWaitMax_s = 1e9;  // thirty years; what the clock's nanoseconds hold

// A Beast body whose bytes go on as they come.
struct PassedBody {
  using value_type = std::function<bool(std::string_view)>;
  class reader {  // NOLINT(readability-identifier-naming): Beast's name
   public:
    template <bool kRequest, class Fields>
    reader(http::header<kRequest, Fields>&, value_type& take) : take_(take) {}
    void init(const boost::optional<uint64_t>&, ErrorCode& error) { error = {}; }
    template <class Buffers>
    size_t put(const Buffers& buffers, ErrorCode& error) {
      size_t taken = 0;
      error = {};
      for (const auto buffer : beast::buffers_range_ref(buffers)) {
        taken += buffer.size();
        if (take_({static_cast<const char*>(buffer.data()), buffer.size()})) continue;
        error = asio::error::operation_aborted;
        break;
      }
      return taken;
    }
    void finish(ErrorCode& error) { error = {}; }

   private:
    value_type& take_;
  };
};

Status status_of(const ErrorCode& failure) {
  if (failure == asio::error::operation_aborted) return error(MOTLEY_CANCELLED, "the rest was not wanted");
  if (failure == http::error::partial_message || failure == http::error::end_of_stream || failure == asio::error::eof) {
    return error(MOTLEY_UNAVAILABLE, "the server closed the connection before its answer was whole");
  }
  if (failure == beast::error::timeout) return error(MOTLEY_UNAVAILABLE, "no answer in time");
  return error(MOTLEY_UNAVAILABLE, "{}", failure.message());
}

bool is_header(const std::pair<std::string, std::string>& header) {
  const auto control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; };
  const auto separator = [&](char c) { return control(c) || c == ' ' || c == ':'; };
  return !header.first.empty() && std::none_of(header.first.begin(), header.first.end(), separator) &&
         std::none_of(header.second.begin(), header.second.end(), control);
}

// Nothing to read and not closed: what comes unasked ends a connection, too.
bool is_quiet(tcp::socket& socket) {
  char byte = 0;
  return recv(socket.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 &&
         (errno == EAGAIN || errno == EWOULDBLOCK);
}

}  // namespace

class HttpClient::Impl {
 public:
  class Exchange;
  using Stream = std::unique_ptr<beast::tcp_stream>;

  Impl(ServerAddress server_address, HttpHeaders with_headers)
      : address(std::move(server_address)), headers(std::move(with_headers)) {}
  Status look_up();
  // One that was used before and is still there, or null.
  Stream take_idle();

  const ServerAddress address;
  const HttpHeaders headers;
  asio::io_context io{1};
  tcp::resolver::results_type endpoints;
  std::vector<Stream> idle;
};

Status HttpClient::Impl::look_up() {
  ErrorCode failure;
  endpoints =
      tcp::resolver(io).resolve(address.host, std::to_string(address.port), tcp::resolver::numeric_service, failure);
  if (!failure && !endpoints.empty()) return ok_status();
  return error(MOTLEY_UNAVAILABLE, "{}: no address of that host is known ({})", address.text(), failure.message());
}

HttpClient::Impl::Stream HttpClient::Impl::take_idle() {
  while (!idle.empty()) {
    Stream stream = std::move(idle.back());
    idle.pop_back();
    if (is_quiet(stream->socket())) return stream;
  }
  return nullptr;
}

// One call under way; kept alive by its pending operation.
class HttpClient::Impl::Exchange : public std::enable_shared_from_this<Exchange> {
 public:
  Exchange(Impl& client, HttpCall call);
  void start();

 private:
  void connect();
  void write();
  void read_header();
  void read_body();
  void end(const ErrorCode& failure);

  Impl& client_;
  HttpCall call_;
  http::request<http::string_body> request_;
  Stream stream_;
  bool reused_ = false;
  beast::flat_buffer buffer_;
  std::optional<http::response_parser<PassedBody>> parser_;
};

HttpClient::Impl::Exchange::Exchange(Impl& client, HttpCall call) : client_(client), call_(std::move(call)) {
  request_.method_string(call_.method);
  request_.target(client.address.prefix + call_.target);
  request_.version(11);
  const bool bare = client.address.host.find(':') == std::string::npos;
  request_.set(http::field::host,
               fmt::format("{}:{}", bare ? client.address.host : "[" + client.address.host + "]", client.address.port));
  request_.set(http::field::accept, "*/*");
  if (!call_.body.empty()) request_.set(http::field::content_type, "application/json");
  for (const auto& [name, value] : client.headers) request_.set(name, value);
  request_.body() = std::move(call_.body);
  request_.prepare_payload();
}

void HttpClient::Impl::Exchange::start() {
  stream_ = client_.take_idle();
  reused_ = stream_ != nullptr;
  reused_ ? write() : connect();
}

void HttpClient::Impl::Exchange::connect() {
  stream_ = std::make_unique<beast::tcp_stream>(client_.io);
  stream_->expires_after(kConnectTimeout);
  stream_->async_connect(client_.endpoints, [self = shared_from_this()](ErrorCode failure, const tcp::endpoint&) {
    if (failure) return self->end(failure);
    ErrorCode ignored;
    self->stream_->socket().set_option(tcp::no_delay(true), ignored);
    self->write();
  });
}

void HttpClient::Impl::Exchange::write() {
  stream_->expires_after(kCallTimeout);
  http::async_write(*stream_, request_, [self = shared_from_this()](ErrorCode failure, size_t) {
    // A server may answer, and close, before it has read all: what it says is read first.
    if (failure && failure != asio::error::broken_pipe && failure != asio::error::connection_reset)
      return self->end(failure);
    self->read_header();
  });
}

void HttpClient::Impl::Exchange::read_header() {
  parser_.emplace();
  parser_->header_limit(kAnswerHeaderBytesMax);
  parser_->body_limit(boost::none);
  parser_->get().body() = [this](std::string_view bytes) { return call_.on_body(bytes); };
  http::async_read_header(*stream_, buffer_, *parser_, [self = shared_from_this()](ErrorCode failure, size_t) {
    if (failure) return self->end(failure);
    const auto& head = self->parser_->get();
    if (head.result_int() < 200) return self->read_header();
    self->parser_->eager(true);
    self->call_.on_head(static_cast<int>(head.result_int()), head.reason());
    self->read_body();
  });
}

void HttpClient::Impl::Exchange::read_body() {
  if (parser_->is_done()) return end({});
  http::async_read_some(*stream_, buffer_, *parser_, [self = shared_from_this()](ErrorCode failure, size_t) {
    failure ? self->end(failure) : self->read_body();
  });
}

void HttpClient::Impl::Exchange::end(const ErrorCode& failure) {
  const bool answered = parser_ && parser_->got_some();
  if (failure && reused_ && !answered) {  // closed while it lay idle
    reused_ = false;
    parser_.reset();
    buffer_.clear();
    return connect();
  }
  if (!failure && buffer_.size() == 0 && parser_->get().keep_alive()) {
    stream_->expires_never();
    client_.idle.push_back(std::move(stream_));
  }
  stream_.reset();
  call_.on_end(failure ? status_of(failure) : ok_status());
}

HttpClient::HttpClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpClient::~HttpClient() = default;

Result<std::unique_ptr<HttpClient>> HttpClient::create(ServerAddress address, HttpHeaders headers) {
  for (const auto& header : headers) {
    if (!is_header(header))
      return invalid_argument("{} cannot be the name and value of a header", in_quotes(header.first));
  }
  auto impl = std::make_unique<Impl>(std::move(address), std::move(headers));
  RETURN_IF_ERROR(impl->look_up());
  return std::unique_ptr<HttpClient>(new HttpClient(std::move(impl)));
}

const ServerAddress& HttpClient::address() const { return impl_->address; }

void HttpClient::send(HttpCall call) { std::make_shared<Impl::Exchange>(*impl_, std::move(call))->start(); }

void HttpClient::after(double seconds, std::function<void()> job) {
  const auto timer = std::make_shared<asio::steady_timer>(impl_->io);  // shared with its own pending operation
  timer->expires_after(std::chrono::nanoseconds(static_cast<int64_t>(std::clamp(seconds, 0.0, kWaitMax_s) * 1e9)));
  timer->async_wait([timer, job = std::move(job)](ErrorCode) { job(); });
}

void HttpClient::run() {
  impl_->io.restart();
  impl_->io.run();
}

Result<HttpReply> HttpClient::fetch(std::string method, std::string target, std::string body) {
  HttpReply reply;
  Status ended;
  send({std::move(method), std::move(target), std::move(body),
        [&](int status, std::string_view reason) {
          reply.status = status;
          reply.reason = reason;
        },
        [&](std::string_view bytes) {
          reply.body += bytes;
          return reply.body.size() <= kReplyBytesMax;
        },
        [&](const Status& end) { ended = end; }});
  run();
  if (!ended.ok()) return ended.annotate(address().text());
  return reply;
}

std::string ServerAddress::text() const {
  return fmt::format("http://{}:{}{}", host.find(':') == std::string::npos ? host : "[" + host + "]", port, prefix);
}

Result<ServerAddress> parse_base_url(std::string_view url) {
  constexpr std::string_view kScheme = "http://";
  const auto refusal = [whole = url] {
    return invalid_argument("{} is not http://HOST[:PORT][/PREFIX]; https is not built", in_quotes(whole));
  };
  if (!url.starts_with(kScheme) || url.find_first_of(" \t\r\n?#@") != std::string_view::npos) return refusal();
  url.remove_prefix(kScheme.size());
  ServerAddress address;
  const size_t slash = std::min(url.find('/'), url.size());
  address.prefix = url.substr(slash);
  while (address.prefix.ends_with('/')) address.prefix.pop_back();
  std::string_view host = url.substr(0, slash);
  const size_t bracket = host.starts_with('[') ? host.find(']') : 0;
  if (bracket == std::string_view::npos) return refusal();
  const size_t colon = host.find(':', bracket);
  if (colon != std::string_view::npos) {
    const std::string_view port = host.substr(colon + 1);
    const auto [end, failure] = std::from_chars(port.data(), port.data() + port.size(), address.port);
    if (failure != std::errc() || end != port.data() + port.size() || address.port == 0) return refusal();
    host = host.substr(0, colon);
  }
  if (bracket > 0) {
    if (!host.ends_with(']')) return refusal();
    host = host.substr(1, host.size() - 2);
  }
  if (host.empty()) return refusal();
  address.host = host;
  return address;
}

uint64_t connections_possible() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  limit.rlim_cur = limit.rlim_max;
  (void)setrlimit(RLIMIT_NOFILE, &limit);
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur <= kDescriptorsReserved) return 0;
  return limit.rlim_cur - kDescriptorsReserved;
}

}  // namespace motley::client
