#include "server/api_error.hpp"

#include <array>
#include <nlohmann/json.hpp>

namespace motley {
namespace {

// By code; the comments of motley_code give the order.
constexpr std::array<int, 17> kHttpStatus = {200, 499, 500, 400, 504, 404, 409, 403, 503,
                                             409, 409, 400, 501, 500, 503, 500, 401};

std::string_view type_of(int status) {
  if (status == 401) return "authentication_error";
  if (status == 404) return "not_found_error";
  if (status >= 500) return "server_error";
  return "invalid_request_error";
}

nlohmann::ordered_json text_or_null(const std::string& text) {
  return text.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(text);
}

constexpr size_t kQuotedBytesMax = 128;

}  // namespace

std::string quoted_text(std::string_view text) {
  if (text.size() <= kQuotedBytesMax) return std::string(text);
  size_t end = kQuotedBytesMax;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;  // not within a character
  return std::string(text.substr(0, end)) + "...";
}

int http_status(Code code) {
  const auto index = static_cast<size_t>(code);
  return index < kHttpStatus.size() ? kHttpStatus[index] : 500;
}

ApiError error_of_status(const Status& status) {
  const int http = http_status(status.code());
  return {http, status.message(), std::string(type_of(http)), {}, {}};
}

ApiError draining_error() {
  return {
      503, "the server is shutting down and takes no new requests; retry elsewhere or later", "server_error", {}, {}};
}

std::string error_body(const ApiError& error) {
  const nlohmann::ordered_json body = {{"error",
                                        {{"message", error.message},
                                         {"type", error.type},
                                         {"param", text_or_null(error.param)},
                                         {"code", text_or_null(error.code)}}}};
  return body.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

HttpResponse error_response(const ApiError& error) {
  HttpResponse response;
  response.status = error.status;
  response.body = error_body(error);
  if (error.status == 503) response.headers.emplace_back("Retry-After", "1");
  if (error.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

}  // namespace motley
