// The command line: argv to a command's struct, and the command run.
#pragma once

#include <cstdint>

#include "base/status.hpp"

namespace motley::apps {

// `started_ns`: when the program began, on system_clock().
Status run_command_line(int argc, char** argv, int64_t started_ns);

}  // namespace motley::apps
