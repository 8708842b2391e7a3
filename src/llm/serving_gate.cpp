#include "llm/serving_gate.hpp"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "base/clock.hpp"

namespace motley {
namespace {

constexpr int64_t kServedPerMeasured = 19;
constexpr std::chrono::seconds kTurnMax{1};

Status cancelled() { return error(MOTLEY_CANCELLED, "the server ends"); }

}  // namespace

// Between two steps: begun on the engine's side, ended on the measuring one's.
class ServingGate::Turn {
 public:
  // What runs between the steps: lasts until end().
  void run() {
    std::unique_lock lock(mutex_);
    began_ns_ = system_clock().now_ns();
    changed_.notify_all();
    changed_.wait_for(lock, kTurnMax, [&] { return ended_; });
  }
  void refuse(const Status& why) {
    std::lock_guard lock(mutex_);
    refused_ = why;
    changed_.notify_all();
  }
  Status wait_begun(const std::stop_token& stop) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, stop, [&] { return began_ns_ != 0 || !refused_.ok(); });
    if (began_ns_ != 0) return ok_status();
    return refused_.ok() ? cancelled() : refused_;
  }
  // Nanoseconds since it began.
  int64_t end() {
    std::lock_guard lock(mutex_);
    ended_ = true;
    changed_.notify_all();
    return system_clock().now_ns() - began_ns_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable_any changed_;
  int64_t began_ns_ = 0;  // 0 = not yet
  bool ended_ = false;
  Status refused_;
};

ServingGate::ServingGate(Engine& engine, std::stop_token stop) : engine_(engine), stop_(std::move(stop)) {}

ServingGate::~ServingGate() {
  if (turn_ != nullptr) turn_->end();
}

Status ServingGate::enter() {
  if (stop_.stop_requested()) return cancelled();
  auto turn = std::make_shared<Turn>();
  Future<Status> done = engine_.between_steps([turn] {
    turn->run();
    return ok_status();
  });
  done.on_ready([turn, done]() mutable {
    if (const Status status = done.take(); !status.ok()) turn->refuse(status);
  });
  const Status begun = turn->wait_begun(stop_);
  if (!begun.ok()) {
    turn->end();
    return begun;
  }
  turn_ = std::move(turn);
  return ok_status();
}

Status ServingGate::leave() {
  const int64_t held_ns = std::exchange(turn_, nullptr)->end();
  const EngineStats stats = engine_.stats();
  if (stats.running + stats.waiting > 0) {
    std::mutex mutex;
    std::condition_variable_any stopped;
    std::unique_lock lock(mutex);
    stopped.wait_for(lock, stop_, std::chrono::nanoseconds(kServedPerMeasured * held_ns), [] { return false; });
  }
  return stop_.stop_requested() ? cancelled() : ok_status();
}

}  // namespace motley
