#include <cstdio>
#include <exception>
#include <new>

#include "base/clock.hpp"
#include "cli.hpp"

int main(int argc, char** argv) {
  const int64_t started_ns = motley::system_clock().now_ns();
  motley::Status status;
  try {
    status = motley::apps::run_command_line(argc, argv, started_ns);
  } catch (const std::bad_alloc&) {
    status = motley::error(MOTLEY_RESOURCE_EXHAUSTED, "out of memory; lower the sizes asked for");
  } catch (const std::exception& failure) {
    status = motley::error(MOTLEY_INTERNAL, "{}", failure.what());
  }
  if (status.ok()) return 0;
  std::fprintf(stderr, "motley: %s\n", status.message().c_str());
  return 1;
}
