// Route: over what two ranks meet. Measured, planned and taken in rooms that share nothing but this one.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace motley {

enum class Route : uint8_t { kSharedMemory, kGloo };

inline constexpr std::array kRoutes = {Route::kSharedMemory, Route::kGloo};  // of equal cost, the first is taken

// As texts and files call it.
constexpr std::string_view route_name(Route route) {
  switch (route) {
    case Route::kSharedMemory: return "shared-memory";
    case Route::kGloo: return "gloo";
  }
  return "";
}

constexpr std::optional<Route> find_route(std::string_view name) {
  for (const Route route : kRoutes) {
    if (route_name(route) == name) return route;
  }
  return std::nullopt;
}

}  // namespace motley
