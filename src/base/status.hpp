// Status and Result<T>: how operating errors travel between rooms.
//
// A Status is a canonical code (motley/types.h) and one line of text for a person: what, where, remedy. Result<T> is a
// T or a Status that is not OK; its names follow std::expected. Both are values; thread-safe like any other value.
// Programmer errors are not Status: see base/check.hpp.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "base/check.hpp"
#include "motley/types.h"

namespace motley {

using Code = motley_code;

// "INVALID_ARGUMENT" and so on.
std::string_view code_name(Code code);

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == MOTLEY_OK; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }
  // "INVALID_ARGUMENT: text", or "OK".
  std::string to_string() const;
  // The same code with "prefix: " before the text.
  Status annotate(std::string_view prefix) const;

 private:
  Code code_ = MOTLEY_OK;
  std::string message_;
};

inline Status ok_status() { return {}; }

template <typename... Args>
Status error(Code code, fmt::format_string<Args...> format, Args&&... args) {
  return Status(code, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
Status invalid_argument(fmt::format_string<Args...> format, Args&&... args) {
  return error(MOTLEY_INVALID_ARGUMENT, format, std::forward<Args>(args)...);
}

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::move(value)) {}        // NOLINT(google-explicit-constructor)
  Result(Status status) : state_(std::move(status)) {  // NOLINT(google-explicit-constructor)
    CHECK(!std::get<1>(state_).ok());
  }

  bool has_value() const { return state_.index() == 0; }
  bool ok() const { return has_value(); }
  explicit operator bool() const { return has_value(); }
  T& value() & {
    CHECK(has_value());
    return std::get<0>(state_);
  }
  const T& value() const& {
    CHECK(has_value());
    return std::get<0>(state_);
  }
  T&& value() && {
    CHECK(has_value());
    return std::get<0>(std::move(state_));
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  // OK if there is a value.
  Status error() const { return has_value() ? Status() : std::get<1>(state_); }

 private:
  std::variant<T, Status> state_;
};

}  // namespace motley

// RETURN_IF_ERROR(expr): leave with expr's status unless it is OK.
#define RETURN_IF_ERROR(expr)                                                   \
  do {                                                                          \
    if (::motley::Status motley_s_ = (expr); !motley_s_.ok()) return motley_s_; \
  } while (0)

// ASSIGN_OR_RETURN(auto x, expr): x = the value of a Result, or leave with its status.
#define MOTLEY_CONCAT_INNER_(a, b) a##b
#define MOTLEY_CONCAT_(a, b) MOTLEY_CONCAT_INNER_(a, b)
#define ASSIGN_OR_RETURN(lhs, expr) MOTLEY_ASSIGN_OR_RETURN_(MOTLEY_CONCAT_(motley_r_, __LINE__), lhs, expr)
#define MOTLEY_ASSIGN_OR_RETURN_(tmp, lhs, expr) \
  auto tmp = (expr);                             \
  if (!tmp.ok()) return tmp.error();             \
  lhs = *std::move(tmp)
