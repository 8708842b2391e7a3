#include "kit/queue.hpp"

#include "kit/internal.hpp"
#include "kit/team.hpp"

namespace motley::kit {

namespace {

// Runs `body`; what it throws becomes the outcome.
template <class Body>
void guarded(Outcome* outcome, Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    outcome->code = error.code(), outcome->text = error.what();
  } catch (const std::bad_alloc&) {
    outcome->code = MOTLEY_RESOURCE_EXHAUSTED, outcome->text = "out of memory";
  } catch (const std::exception& error) {
    outcome->code = MOTLEY_INTERNAL, outcome->text = error.what();
  }
}

}  // namespace

Queue::Queue(std::vector<int> cores, bool ahead)
    : ahead_(ahead), worker_([this, cores = std::move(cores)] { loop(cores); }) {
  if (!ahead) return;
  try {
    waiter_ = std::thread([this] { wait_loop(); });
  } catch (...) {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    worker_.join();
    throw;
  }
}

Queue::~Queue() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  worker_.join();
  if (waiter_.joinable()) waiter_.join();
}

void Queue::push(Kind kind, Work work, std::shared_ptr<Event> event, Done done) {
  {
    std::lock_guard lock(mutex_);
    if ((kind == Kind::kProgram && programs_ >= kQueueDepth) || unfinished_ >= kQueueItemsMax)
      fail(MOTLEY_RESOURCE_EXHAUSTED, "the queue is full; wait for an earlier event");
    items_.push_back({kind, std::move(work), std::move(event), std::move(done), nullptr, {}});
    ++unfinished_;
    programs_ += kind == Kind::kProgram;
  }
  ahead_ ? changed_.notify_all() : changed_.notify_one();
}

bool Queue::take(std::deque<Item>& items, const bool& last, Item* item) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return last || !items.empty(); });
  if (items.empty()) return false;
  *item = std::move(items.front());
  items.pop_front();
  return true;
}

void Queue::loop(const std::vector<int>& cores) {
  bind_thread(cores);
  Item item;
  while (take(items_, stop_, &item)) {
    item.outcome.start_ns = monotonic_ns();
    guarded(&item.outcome, [&] { item.mark = item.work(); });
    item.work = nullptr;
    if (!ahead_) {
      finish(std::move(item));
      continue;
    }
    {
      std::lock_guard lock(mutex_);
      started_.push_back(std::move(item));
    }
    changed_.notify_all();
  }
  {
    std::lock_guard lock(mutex_);
    worker_ended_ = true;
  }
  changed_.notify_all();
}

void Queue::wait_loop() {
  Item item;
  while (take(started_, worker_ended_, &item)) finish(std::move(item));
}

void Queue::finish(Item item) {
  if (item.mark) guarded(&item.outcome, [&] { item.mark->wait(); });
  item.mark.reset();
  // Work that was started early began when what was before it ended.
  item.outcome.start_ns = std::max(item.outcome.start_ns, ended_ns_);
  item.outcome.end_ns = ended_ns_ = monotonic_ns();
  if (item.done) item.done(item.outcome);
  {
    std::lock_guard lock(mutex_);
    --unfinished_;
    programs_ -= item.kind == Kind::kProgram;
  }
  // The place in the queue is free before anyone can learn that the work is done.
  if (item.event) item.event->fire(std::move(item.outcome));
}

}  // namespace motley::kit
