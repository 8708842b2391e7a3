#include <fcntl.h>

#include <cstdio>
#include <exception>
#include <new>

#include "base/clock.hpp"
#include "cli.hpp"

namespace {

using motley::Status;

// A closed standard descriptor would go to the next file or socket that the program opens, and what is meant for the
// user would be written into it. /dev/null takes its place, opened so that reading standard input and writing standard
// output still fail; messages are lost.
Status hold_standard_descriptors() {
  constexpr int kModes[] = {O_WRONLY, O_RDONLY, O_WRONLY};
  for (int fd = 0; fd < 3; ++fd) {
    if (fcntl(fd, F_GETFD) >= 0) continue;
    if (open("/dev/null", kModes[fd]) != fd) {
      return motley::error(MOTLEY_FAILED_PRECONDITION, "descriptor {} is closed and /dev/null cannot be opened", fd);
    }
  }
  return motley::ok_status();
}

Status run(int argc, char** argv) {
  const int64_t started_ns = motley::system_clock().now_ns();
  try {
    RETURN_IF_ERROR(hold_standard_descriptors());
    RETURN_IF_ERROR(motley::apps::run_command_line(argc, argv, started_ns));
  } catch (const std::bad_alloc&) {
    return motley::error(MOTLEY_RESOURCE_EXHAUSTED, "out of memory; lower the sizes asked for");
  } catch (const std::exception& failure) {
    return motley::error(MOTLEY_INTERNAL, "{}", failure.what());
  }
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return motley::ok_status();
  return motley::error(MOTLEY_DATA_LOSS, "standard output cannot be written; the answer is incomplete");
}

}  // namespace

int main(int argc, char** argv) {
  const Status status = run(argc, argv);
  if (status.ok()) return 0;
  std::fprintf(stderr, "motley: %s\n", status.message().c_str());
  return 1;
}
