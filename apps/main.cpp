#include <cstdio>

#include "base/clock.hpp"
#include "cli.hpp"

int main(int argc, char** argv) {
  const int64_t started_ns = motley::system_clock().now_ns();
  const motley::Status status = motley::apps::run_command_line(argc, argv, started_ns);
  if (status.ok()) return 0;
  std::fprintf(stderr, "motley: %s\n", status.message().c_str());
  return 1;
}
