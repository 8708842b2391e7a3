// Records of programs, by the steps that they are of. Not thread-safe.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace motley::cuda {

// Graph: what a record holds; tests true if it holds something, which its destructor frees.
template <class Graph>
class Records {
 public:
  struct Record {
    uint64_t used = 0;  // which of all uses was the last
    bool seen = false;
    bool refused = false;  // it cannot be recorded
    Graph graph{};
  };
  explicit Records(size_t most) : most_(most) {}

  // The record of a step, made if there is none, which stays where it is until another is asked for. Where there are as
  // many as may be, some make room: steps with prompts hardly ever come again, and must not push out those that do, so
  // what came once goes first; if that is less than a quarter, then, after wait(), the half not used for longest.
  template <class Wait>
  Record& use(std::vector<uint64_t> key, Wait&& wait) {
    if (records_.size() >= most_ && !records_.contains(key)) make_room(wait);
    Record& record = records_[std::move(key)];
    record.used = ++uses_;
    return record;
  }
  void clear() { records_.clear(); }
  size_t size() const { return records_.size(); }

 private:
  template <class Wait>
  void make_room(Wait&& wait) {
    std::erase_if(records_, [](const auto& one) { return !one.second.graph && !one.second.refused; });
    if (records_.size() <= most_ / 4 * 3) return;
    std::vector<uint64_t> used;
    for (const auto& [key, record] : records_) used.push_back(record.used);
    const auto middle = used.begin() + static_cast<std::ptrdiff_t>(used.size() / 2);
    std::nth_element(used.begin(), middle, used.end());
    wait();
    std::erase_if(records_, [&](const auto& one) { return one.second.used < *middle; });
  }

  size_t most_;
  std::map<std::vector<uint64_t>, Record> records_;
  uint64_t uses_ = 0;
};

}  // namespace motley::cuda
