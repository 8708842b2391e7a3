// How a device is opened in a worker process.
#pragma once

#include <cstdint>
#include <string>

namespace motley {

struct WorkerOptions {
  std::string program = "/proc/self/exe";  // is run as `program worker --fd N`: the motley command, or one like it
  std::string device_name;                 // for messages; "" = the plugin's name and the index
  std::string spec;  // a device that is described, not enumerated: as its plugin takes it; then index is
                     // the description's
  int64_t call_timeout_ns = 10'000'000'000;        // of a control call
  int64_t slow_call_timeout_ns = 600'000'000'000;  // of those that may take long: start, open, pack
  int64_t compile_timeout_ns = 600'000'000'000;
  // Of asking for figures, and of a sign of life during a slow call; call_timeout_ns for a worker seen at work.
  int64_t stats_timeout_ns = 1'000'000'000;
  int64_t spin_ns = 20'000;  // how long either side looks (and yields) for the next event or record before it sleeps
};

}  // namespace motley
