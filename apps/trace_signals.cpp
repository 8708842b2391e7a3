#include "trace_signals.hpp"

#include <pthread.h>

namespace motley::apps {
namespace {

constexpr int kEnough = SIGUSR1;  // to the thread alone: the program ends by itself

bool ignored(int signal) {
  struct sigaction now {};
  return sigaction(signal, nullptr, &now) == 0 && now.sa_handler == SIG_IGN;
}

void watch(Trace* trace, const sigset_t& set) {
  int signal = 0;
  while (sigwait(&set, &signal) != 0) {
  }
  if (signal == kEnough) return;
  (void)trace->close();  // the program ends with the signal, whatever became of the trace
  sigset_t one;
  sigemptyset(&one);
  sigaddset(&one, signal);
  std::signal(signal, SIG_DFL);
  pthread_sigmask(SIG_UNBLOCK, &one, nullptr);
  raise(signal);
}

}  // namespace

TraceSignals::TraceSignals(Trace* trace, std::initializer_list<int> signals) {
  if (trace == nullptr) return;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, kEnough);
  for (const int signal : signals)
    if (!ignored(signal)) sigaddset(&set, signal);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  thread_ = std::thread([trace, set] { watch(trace, set); });
}

TraceSignals::~TraceSignals() {
  if (!thread_.joinable()) return;
  pthread_kill(thread_.native_handle(), kEnough);
  thread_.join();
}

}  // namespace motley::apps
