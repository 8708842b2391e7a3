// Any bytes, read as a model file: a model whose weights lie inside the bytes and whose tokenizer gives its own ids, or
// a refusal of one line.
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/check.hpp"
#include "fuzz/text_model_checks.hpp"
#include "model/gguf_model.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

void check_weights(const motley::Model& model, std::span<const std::byte> bytes) {
  for (size_t i = 0; i < model.graph().weights.size(); ++i) {
    const auto read = model.read(i);
    CHECK(read.ok(), "weight {}: {}", i, read.error().message());
    const std::span<const std::byte> weight = read->data;
    CHECK(weight.data() >= bytes.data() && weight.size() <= bytes.size(), "weight {}", i);
    CHECK(weight.data() + weight.size() <= bytes.data() + bytes.size(), "weight {}", i);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  const auto model = motley::load_model_from_bytes(bytes, "fuzz");
  if (!model.ok()) {
    motley::fuzz::check_refusal(model.error());
    return 0;
  }
  check_weights(**model, bytes);
  motley::fuzz::check_text(**model);
  return 0;
}
