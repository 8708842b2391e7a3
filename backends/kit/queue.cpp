#include "kit/queue.hpp"

#include "kit/internal.hpp"
#include "kit/team.hpp"

namespace motley::kit {

Queue::Queue(std::vector<int> cores) : worker_([this, cores = std::move(cores)] { loop(cores); }) {}

Queue::~Queue() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_one();
  worker_.join();
}

void Queue::push(Kind kind, std::function<Outcome()> work, std::shared_ptr<Event> event) {
  {
    std::lock_guard lock(mutex_);
    if ((kind == Kind::kProgram && programs_ >= kQueueDepth) || unfinished_ >= kQueueItemsMax)
      fail(MOTLEY_RESOURCE_EXHAUSTED, "the queue is full; wait for an earlier event");
    items_.push_back({kind, std::move(work), std::move(event)});
    ++unfinished_;
    programs_ += kind == Kind::kProgram;
  }
  changed_.notify_one();
}

void Queue::loop(const std::vector<int>& cores) {
  bind_thread(cores);
  for (;;) {
    Item item;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stop_ || !items_.empty(); });
      if (items_.empty()) return;
      item = std::move(items_.front());
      items_.pop_front();
    }
    const int64_t start_ns = monotonic_ns();
    Outcome outcome;
    try {
      outcome = item.work();
    } catch (const Error& error) {
      outcome = {error.code(), error.what()};
    } catch (const std::bad_alloc&) {
      outcome = {MOTLEY_RESOURCE_EXHAUSTED, "out of memory"};
    } catch (const std::exception& error) {
      outcome = {MOTLEY_INTERNAL, error.what()};
    }
    item.work = nullptr;
    outcome.start_ns = start_ns, outcome.end_ns = monotonic_ns();
    {
      std::lock_guard lock(mutex_);
      --unfinished_;
      programs_ -= item.kind == Kind::kProgram;
    }
    // The place in the queue is free before anyone can learn that the work is done.
    if (item.event) item.event->fire(std::move(outcome));
  }
}

}  // namespace motley::kit
