#include "sim/timeline.hpp"

#include <algorithm>

namespace motley::sim {

void Timeline::make_room() {
  if (busy_.size() >= kBusyMax) busy_.erase(busy_.begin(), busy_.begin() + kBusyMax / 2);
}

int64_t Timeline::take(int64_t earliest_ns, int64_t duration_ns) {
  std::lock_guard lock(mutex_);
  make_room();
  int64_t begin = earliest_ns;
  auto at = std::partition_point(busy_.begin(), busy_.end(), [&](const Busy& b) { return b.end_ns <= earliest_ns; });
  for (; at != busy_.end() && at->begin_ns < begin + duration_ns; ++at) begin = std::max(begin, at->end_ns);
  busy_.insert(at, {begin, begin + duration_ns});
  return begin;
}

Timeline::Busy Timeline::take_parts(int64_t earliest_ns, int64_t duration_ns) {
  std::lock_guard lock(mutex_);
  make_room();
  const auto first =
      std::partition_point(busy_.begin(), busy_.end(), [&](const Busy& b) { return b.end_ns <= earliest_ns; });
  auto next = first;
  int64_t begin_ns = -1, now_ns = earliest_ns;
  for (int64_t left_ns = duration_ns; left_ns > 0;) {
    const int64_t gap_ns = next == busy_.end() ? left_ns : std::clamp<int64_t>(next->begin_ns - now_ns, 0, left_ns);
    if (gap_ns > 0 && begin_ns < 0) begin_ns = now_ns;
    left_ns -= gap_ns, now_ns += gap_ns;
    if (left_ns > 0) now_ns = (next++)->end_ns;
  }
  if (begin_ns < 0) return {earliest_ns, earliest_ns};  // of nothing
  const int64_t joined_ns = next == first ? begin_ns : std::min(begin_ns, first->begin_ns);
  busy_.insert(busy_.erase(first, next), {joined_ns, now_ns});
  return {begin_ns, now_ns};
}

void Timeline::extend(int64_t end_ns) {
  std::lock_guard lock(mutex_);
  if (!busy_.empty()) busy_.back().end_ns = std::max(busy_.back().end_ns, end_ns);
}

uint64_t AccessLog::next_order() {
  std::lock_guard lock(mutex_);
  return ++order_;
}

void AccessLog::add(Work work) {
  std::lock_guard lock(mutex_);
  if (works_.size() >= kWorksMax) works_.erase(works_.begin());
  works_.push_back(std::move(work));
}

void AccessLog::remove(uint64_t order) {
  std::lock_guard lock(mutex_);
  std::erase_if(works_, [&](const Work& w) { return w.order == order; });
}

std::optional<std::string> AccessLog::conflict(const Work& mine, bool virtual_time) {
  std::lock_guard lock(mutex_);
  for (const Work& other : works_) {
    if (other.queue == mine.queue) continue;
    if (virtual_time ? other.end_ns <= mine.begin_ns || other.event->seen() : other.order >= mine.order) continue;
    for (const Access& a : mine.accesses)
      for (const Access& b : other.accesses)
        if (a.buffer == b.buffer && a.begin < b.end && b.begin < a.end && (a.write || b.write))
          return "this work " + std::string(a.write ? "writes" : "reads") + " bytes " + std::to_string(a.begin) +
                 " to " + std::to_string(a.end) + " of a buffer that unfinished work of another queue " +
                 (b.write ? "writes" : "reads") + "; fence on its event or wait for it";
  }
  return std::nullopt;
}

void AccessLog::forget(int64_t now_ns) {
  std::lock_guard lock(mutex_);
  std::erase_if(works_, [&](const Work& w) { return w.end_ns <= now_ns || w.event->seen(); });
}

}  // namespace motley::sim
