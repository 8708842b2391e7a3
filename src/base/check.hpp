// CHECK(condition, "format", values...): a broken invariant aborts with its values. For programmer errors only; what a
// user, file or peer can cause is a Status. DCHECK is the same in debug builds and nothing in release builds.
#pragma once

#include <fmt/format.h>

#include <string>

namespace motley::internal {
[[noreturn]] void check_failed(const char* file, int line, const char* condition, const std::string& detail);
template <typename... Args>
std::string check_detail(fmt::format_string<Args...> format, Args&&... args) {
  return fmt::format(format, std::forward<Args>(args)...);
}
inline std::string check_detail() { return {}; }
}  // namespace motley::internal

#define CHECK(condition, ...)                                             \
  (__builtin_expect(static_cast<bool>(condition), 1)                      \
       ? static_cast<void>(0)                                             \
       : ::motley::internal::check_failed(__FILE__, __LINE__, #condition, \
                                          ::motley::internal::check_detail(__VA_ARGS__)))
#ifdef NDEBUG
#define DCHECK(condition, ...) static_cast<void>(sizeof(static_cast<bool>(condition)))
#else
#define DCHECK(condition, ...) CHECK(condition __VA_OPT__(, ) __VA_ARGS__)
#endif
