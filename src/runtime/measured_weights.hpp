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
    Bytes& bytes = probe.of_vocabulary() ? vocabulary_ : layers_;
    bytes.packed += static_cast<double>(probe.weight_bytes());
    bytes.source += static_cast<double>(probe.source_bytes());
    for (const auto& weight : probe.weights()) {
      if (weight->source_dtype == weight->info.format) continue;
      formats_.insert(weight->info.format);
      error_ += {weight->squares, weight->error_squares};
    }
  }
  // Bytes here by bytes in the file, of the whole model: layers, and embedding and head, may be in different formats. 1
  // where nothing was measured.
  double ratio(const Model& model) const {
    double layers = 0, vocabulary = 0;
    for (size_t i = 0; i < model.graph().weights.size(); ++i) {
      const bool of_layer = model.graph().weights[i].name.starts_with("blk.");
      (of_layer ? layers : vocabulary) += static_cast<double>(model.weight(i).bytes);
    }
    const double of_layers = layers_.source > 0 ? layers_.ratio() : vocabulary_.ratio(),
                 of_vocabulary = vocabulary_.source > 0 ? vocabulary_.ratio() : of_layers;
    return layers + vocabulary > 0 ? (layers * of_layers + vocabulary * of_vocabulary) / (layers + vocabulary) : 1;
  }
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
  struct Bytes {
    double source = 0, packed = 0;
    double ratio() const { return source > 0 ? packed / source : 1; }
  };
  Bytes layers_, vocabulary_;
  std::set<int32_t> formats_;
  FormatError error_;
};

}  // namespace motley
