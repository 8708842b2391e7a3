// What nearly every source of a room includes, compiled once (cmake/motley.cmake). Sources include what they use all
// the same: tools/check_headers compiles headers without this.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>
