// ApiError: a refusal in OpenAI's shape. A value.
#pragma once

#include <fmt/format.h>

#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/status.hpp"
#include "server/http.hpp"

namespace motley {

struct ApiError {
  int status = 400;
  std::string message;
  std::string type = "invalid_request_error";
  std::string param = {};  // the field at fault; empty = null
  std::string code = {};   // empty = null
};

// Set: what is wrong. Unset: nothing is.
using MaybeError = std::optional<ApiError>;

// A 400 about one field (or, with an empty name, about the whole).
template <typename... Args>
ApiError bad_request(std::string param, fmt::format_string<Args...> format, Args&&... args) {
  return {400, fmt::format(format, std::forward<Args>(args)...), "invalid_request_error", std::move(param), {}};
}

// Text of a client's, fit to be quoted in an error: its beginning, if it is long.
std::string quoted_text(std::string_view text);

// The one mapping of canonical codes to HTTP statuses.
int http_status(Code code);
ApiError error_of_status(const Status& status);
ApiError draining_error();

// {"error": {"message", "type", "param", "code"}}.
std::string error_body(const ApiError& error);
HttpResponse error_response(const ApiError& error);

}  // namespace motley
