// MeasuredWeights: what measured weights are held in, beside what the model's file has.
#pragma once

#include <fmt/format.h>

#include <set>
#include <string>

#include "model/dtype.hpp"
#include "model/requantise.hpp"
#include "runtime/probe.hpp"

namespace motley {

// Not thread-safe.
class MeasuredWeights {
 public:
  void add(const Probe& probe) {
    packed_bytes_ += static_cast<double>(probe.weight_bytes());
    source_bytes_ += static_cast<double>(probe.source_bytes());
    for (const auto& weight : probe.weights()) {
      if (weight->source_dtype == weight->info.format) continue;
      formats_.insert(weight->info.format);
      error_ += {weight->squares, weight->error_squares};
    }
  }
  // Bytes here by bytes in the file; 1 where there are none.
  double ratio() const { return source_bytes_ > 0 ? packed_bytes_ / source_bytes_ : 1; }
  // For people: what weights are held in that is not the file's, and what that takes from them; empty: nothing is.
  std::string text() const {
    std::string text;
    for (const int32_t format : formats_) {
      const DtypeInfo* info = find_dtype(format);
      if (info != nullptr) text += (text.empty() ? "" : ", ") + std::string(info->name);
    }
    return error_.squares > 0 ? fmt::format("{}, {:.2g} % off", text, 100 * error_.relative()) : text;
  }

 private:
  double source_bytes_ = 0, packed_bytes_ = 0;
  std::set<int32_t> formats_;
  FormatError error_;
};

}  // namespace motley
