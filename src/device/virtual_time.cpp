#include "device/virtual_time.hpp"

namespace motley {
namespace {
thread_local const int64_t* current = nullptr;
}

VirtualTimeScope::VirtualTimeScope(const int64_t* now_ns) : before_(current) { current = now_ns; }
VirtualTimeScope::~VirtualTimeScope() { current = before_; }

int64_t virtual_now_ns() { return current == nullptr ? 0 : *current; }

}  // namespace motley
