// Which simulated devices can be opened: the presets, and files once they are described.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <mutex>

#include "sim/spec.hpp"

namespace motley::sim {

// Thread-safe; lives as long as the library. Indices are never used again.
class Catalogue {
 public:
  static Catalogue& instance();
  // A preset's name, or the path of a device file. The same file with the same text has the same index. Throws Error.
  motley_device_desc describe(const std::string& name);
  motley_device_desc describe(uint32_t index);
  Spec spec(uint32_t index);  // throws NOT_FOUND

 private:
  static constexpr size_t kDevicesMax = 1 << 16;
  Catalogue();
  motley_device_desc describe_locked(uint32_t index) const;
  struct Entry {
    std::string name, text;  // text: of the file
    Spec spec;
  };
  std::mutex mutex_;
  std::vector<Entry> entries_;
};

}  // namespace motley::sim
