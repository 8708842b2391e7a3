// A trace's end where a signal ends the program.
#pragma once

#include <csignal>
#include <initializer_list>
#include <thread>

#include "base/trace.hpp"

namespace motley::apps {

// While it lives, each of these signals makes the trace whole before it does what it always does. Blocks them for
// threads made after it, so it comes before any other; owns a thread of its own. Without a trace (null) it does
// nothing. Signals that the program was told to ignore stay ignored.
class TraceSignals {
 public:
  TraceSignals(Trace* trace, std::initializer_list<int> signals);
  ~TraceSignals();
  TraceSignals(const TraceSignals&) = delete;
  TraceSignals& operator=(const TraceSignals&) = delete;

 private:
  std::thread thread_;
};

}  // namespace motley::apps
