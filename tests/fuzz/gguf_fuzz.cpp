// Any bytes, read as a model file: a model whose weights lie inside the bytes, or a refusal of one line.
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/check.hpp"
#include "model/gguf_model.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  const auto model = motley::load_model_from_bytes(bytes, "fuzz");
  if (!model.ok()) {
    CHECK(!model.error().message().empty());
    CHECK(model.error().message().find('\n') == std::string::npos, "{}", model.error().message());
    return 0;
  }
  for (size_t i = 0; i < (*model)->graph().weights.size(); ++i) {
    const auto read = (*model)->read(i);
    CHECK(read.ok(), "weight {}: {}", i, read.error().message());
    const std::span<const std::byte> weight = read->data;
    CHECK(weight.data() >= bytes.data() && weight.size() <= bytes.size(), "weight {}", i);
    CHECK(weight.data() + weight.size() <= bytes.data() + bytes.size(), "weight {}", i);
  }
  return 0;
}
