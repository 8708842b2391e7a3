#include "device/worker/worker_main.hpp"

#include <sys/prctl.h>

#include <csignal>
#include <cstdlib>

#include "base/log.hpp"
#include "device/worker/worker_calls.hpp"

namespace motley {

int run_worker(int fd) {
  constexpr int kExitHostGone = 1, kExitDamaged = 2;
  using namespace worker;
  // The host decides when a worker ends: what a terminal or a service manager sends to all processes is the host's
  // business. A host that dies takes its workers along, by this signal and by the end of the socket.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  for (const int ignored : {SIGINT, SIGTERM, SIGHUP, SIGPIPE}) std::signal(ignored, SIG_IGN);
  WorkerState state;
  std::unique_ptr<StepRunner> steps;
  CallServer server(Channel(Descriptor(fd)), state, steps, true);
  const Status end = server.serve();
  if (end.ok()) return 0;
  if (end.code() != MOTLEY_UNAVAILABLE) log_error("worker: {}", end.message());
  // Whatever the plugin is at, nobody waits for it any more.
  std::_Exit(end.code() == MOTLEY_UNAVAILABLE ? kExitHostGone : kExitDamaged);
}

}  // namespace motley
