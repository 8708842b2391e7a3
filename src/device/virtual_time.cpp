#include "device/virtual_time.hpp"

#include <atomic>

namespace motley {
namespace {
constexpr int64_t kApartNs = 1'000'000'000'000;
std::atomic<int64_t> starts = 0;
thread_local const int64_t* current = nullptr;
}  // namespace

VirtualTimeScope::VirtualTimeScope(const int64_t* now_ns) : before_(current) { current = now_ns; }
VirtualTimeScope::~VirtualTimeScope() { current = before_; }

int64_t virtual_start_ns() { return kApartNs * starts.fetch_add(1); }

int64_t virtual_now_ns() { return current == nullptr ? 0 : *current; }

}  // namespace motley
