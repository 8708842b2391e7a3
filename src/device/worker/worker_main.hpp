// What runs inside a worker process.
#pragma once

namespace motley {

// Serves one host over the inherited socket until the host is done or gone; the answer is the process's exit code.
// Opens the plugin that the host names. For the main thread of a program that does nothing else.
int run_worker(int fd);

}  // namespace motley
