// Promise<T> and Future<T>: one value, set once by one thread, taken once by another, with a callback on readiness so
// that an owner thread can wait for futures and commands in one place.
//
// Thread-safe between the promise's thread and the future's thread. The callback runs on the thread that sets the value
// (or at once, if it is there already); it must not block.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "base/check.hpp"

namespace motley {

namespace internal {
template <typename T>
struct FutureState {
  std::mutex mutex;
  std::condition_variable changed;
  std::optional<T> value;
  std::function<void()> callback;
};
}  // namespace internal

template <typename T>
class Future {
 public:
  Future() = default;
  explicit Future(std::shared_ptr<internal::FutureState<T>> state) : state_(std::move(state)) {}

  bool valid() const { return state_ != nullptr; }
  bool ready() const {
    std::lock_guard lock(state_->mutex);
    return state_->value.has_value();
  }
  // Blocks until the value is there, and moves it out. Once only.
  T take() {
    std::unique_lock lock(state_->mutex);
    state_->changed.wait(lock, [&] { return state_->value.has_value(); });
    return *std::exchange(state_->value, std::nullopt);
  }
  void on_ready(std::function<void()> callback) {
    std::unique_lock lock(state_->mutex);
    if (!state_->value) {
      state_->callback = std::move(callback);
      return;
    }
    lock.unlock();
    callback();
  }

 private:
  std::shared_ptr<internal::FutureState<T>> state_;  // shared by design: promise and future outlive one another freely
};

template <typename T>
class Promise {
 public:
  Future<T> future() const { return Future<T>(state_); }
  void set(T value) {
    std::function<void()> callback;
    {
      std::lock_guard lock(state_->mutex);
      CHECK(!state_->value.has_value());
      state_->value = std::move(value);
      callback = std::move(state_->callback);
      state_->changed.notify_all();
    }
    if (callback) callback();
  }

 private:
  std::shared_ptr<internal::FutureState<T>> state_ = std::make_shared<internal::FutureState<T>>();
};

}  // namespace motley
