// Row counts that a device's compiler fails on, as long as the device is open.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/log.hpp"

namespace motley {

// Thread-safe. Whoever compiles next for the device leaves them out.
class UncompiledRows {
 public:
  explicit UncompiledRows(std::string device) : device_(std::move(device)) {}

  void add(uint32_t rows, const std::string& why) {
    if (take(rows))
      log_warning("{} has no programs for {} rows, which do not compile, and goes on without: {}", device_, rows, why);
  }
  // Found out at an earlier start.
  void known(uint32_t rows) {
    if (take(rows))
      log_info("{} goes without programs for {} rows, which did not compile before; --measure-again tries them anew",
               device_, rows);
  }
  std::vector<uint32_t> rows() const {
    std::lock_guard lock(mutex_);
    return {rows_.begin(), rows_.end()};
  }

 private:
  bool take(uint32_t rows) {  // whether it is new here
    std::lock_guard lock(mutex_);
    return rows_.insert(rows).second;
  }

  const std::string device_;
  mutable std::mutex mutex_;
  std::set<uint32_t> rows_;
};

// None of null.
inline std::vector<uint32_t> rows_of(const std::shared_ptr<UncompiledRows>& uncompiled) {
  return uncompiled == nullptr ? std::vector<uint32_t>() : uncompiled->rows();
}

// What `work` gives, done again for as long as a row count of the device is found not to compile meanwhile.
template <typename Work>
auto until_all_compile(const std::shared_ptr<UncompiledRows>& uncompiled, const Work& work) {
  for (;;) {
    const size_t known = rows_of(uncompiled).size();
    auto answer = work();
    if (rows_of(uncompiled).size() == known) return answer;
  }
}

}  // namespace motley
