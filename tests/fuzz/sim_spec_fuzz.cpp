// Any text, read as the file of a simulated device: figures within their bounds, or a refusal of one line that names
// the file.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.hpp"
#include "kit/kit.hpp"
#include "sim/spec.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const motley::sim::Spec spec = motley::sim::parse_spec(text, "f.toml");
    for (const double rate : spec.rates.gflops) CHECK(rate > 0 && rate <= 1e9, "{}", rate);
    CHECK(spec.rates.bandwidth_gb_s > 0 && spec.rates.link_gb_s > 0);
    CHECK(spec.memory_bytes >= 1 << 20 && spec.queue_depth >= 1 && spec.queue_depth <= 64);
    CHECK(spec.jitter >= 0 && spec.jitter < 1, "{}", spec.jitter);
    for (const motley::sim::Fault& fault : spec.faults)
      CHECK((fault.at_program == 0) != (fault.at_ns < 0) && fault.for_ns >= 0 && fault.factor >= 1);
  } catch (const motley::kit::Error& error) {
    const std::string said = error.what();
    CHECK(said.starts_with("f.toml:") && said.find('\n') == std::string::npos, "{}", said);
  }
  return 0;
}
