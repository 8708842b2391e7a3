// A device's memory cap.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>

#include "kit/kit.hpp"

namespace motley::kit {

// Bytes taken of a device's memory cap. Thread-safe.
class Budget {
 public:
  explicit Budget(uint64_t cap) : cap_(cap) {}
  void take(uint64_t bytes, const char* what) {
    const uint64_t now = used_.fetch_add(bytes) + bytes, cap = cap_.load();
    if (cap == 0 || now <= cap) return;
    used_.fetch_sub(bytes);
    fail(MOTLEY_RESOURCE_EXHAUSTED, "%s of %llu bytes exceeds the memory cap of %llu (%llu in use)", what,
         static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(cap),
         static_cast<unsigned long long>(now - bytes));
  }
  void give(uint64_t bytes) { used_.fetch_sub(bytes); }
  uint64_t used() const { return used_.load(); }
  uint64_t cap() const { return cap_.load(); }
  // What is taken already stays, even if it is more.
  void set_cap(uint64_t cap) { cap_.store(cap); }

 private:
  std::atomic<uint64_t> cap_;
  std::atomic<uint64_t> used_{0};
};

// A share of a budget, given back at the end.
class Share {
 public:
  Share() = default;
  Share(Budget& budget, uint64_t bytes, const char* what) : bytes_(bytes) {
    budget.take(bytes, what);
    budget_ = &budget;
  }
  Share(Share&& other) noexcept : budget_(std::exchange(other.budget_, nullptr)), bytes_(other.bytes_) {}
  Share& operator=(Share&& other) noexcept {
    std::swap(budget_, other.budget_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Share() {
    if (budget_) budget_->give(bytes_);
  }

 private:
  Budget* budget_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace motley::kit
