// What nearly every source includes, compiled once for tests and under sanitizers (cmake/motley.cmake). Sources include
// what they use all the same: a release build compiles rooms without this.
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
