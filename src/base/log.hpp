// Logging: one line an event, to standard error, through spdlog. Secrets (API keys, prompts) are never logged.
// Thread-safe. MOTLEY_LOG_LEVEL (debug, info, warning, error) sets the level at start. A line for which there is no
// memory is lost: who reports a lack of memory is not to meet another.
#pragma once

#include <fmt/format.h>

#include <new>
#include <string_view>
#include <utility>

namespace motley {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

void set_log_level(LogLevel level);
bool log_enabled(LogLevel level);
void log_text(LogLevel level, std::string_view text);

template <typename... Args>
void log(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
  try {
    if (log_enabled(level)) log_text(level, fmt::format(format, std::forward<Args>(args)...));
  } catch (const std::bad_alloc&) {
    return;
  }
}
template <typename... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log(LogLevel::kInfo, format, std::forward<Args>(args)...);
}
template <typename... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
  log(LogLevel::kWarning, format, std::forward<Args>(args)...);
}
template <typename... Args>
void log_error(fmt::format_string<Args...> format, Args&&... args) {
  log(LogLevel::kError, format, std::forward<Args>(args)...);
}

}  // namespace motley
