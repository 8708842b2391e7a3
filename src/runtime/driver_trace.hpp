// What a driver writes into a trace (docs/tracing.md): its device's programs and copies, and its own meetings.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.hpp"
#include "base/trace.hpp"
#include "device/handles.hpp"
#include "runtime/host_buffer.hpp"
#include "runtime/tape.hpp"

namespace motley {

// The programs of a step that are enqueued on one queue: the event of the newest, which fires last, and those of the
// others, which may have failed, and have times for a trace. Move-only; empty once moved from.
class ProgramEvents {
 public:
  // `began_ns`: just before it was enqueued; that of the first counts. `number`: of the program, as its queue counts
  // them from 1.
  void add(EventHandle event, const TapeProgram& program, int64_t began_ns, uint64_t number);
  // Of those before the newest, which has fired: what the first that failed says. A later one knows nothing of it.
  Status failed_before(const Device& device) const;

  explicit operator bool() const { return static_cast<bool>(newest_.event); }
  // Of the newest program.
  const EventHandle& last() const { return newest_.event; }
  uint64_t last_number() const { return number_; }
  int64_t began_ns() const { return began_ns_; }

 private:
  friend class DriverTrace;
  struct Program {
    EventHandle event;
    const TapeProgram* program = nullptr;  // borrowed from the tape
  };
  std::vector<Program> earlier_;
  Program newest_;
  uint64_t number_ = 0;
  int64_t began_ns_ = 0;
};

// One thread, the driver's. Without a Trace every call returns at once.
class DriverTrace : public CopyObserver {
 public:
  // `trace` is borrowed, or null. `device`: the name; `simulated` ones say so in their tracks.
  DriverTrace(Trace* trace, const Device& device, const std::string& name, bool simulated);

  bool on() const { return trace_ != nullptr; }
  // The events have fired. Those without times (work that failed, a device that times no events) are left out.
  void programs(const ProgramEvents& events, StepId step, const motley_batch& batch);
  void copied(bool to_device, uint64_t bytes, const motley_event_times& times) override;
  // What the driver did at an entry of the tape, from when its device was ready to when it could go on.
  void meeting(TapeOp op, StepId step, int64_t begin_ns, int64_t end_ns, uint64_t bytes);

 private:
  void program(const ProgramEvents::Program& each, StepId step, const motley_batch& batch);

  Trace* const trace_;
  const Device& device_;
  TraceTrack device_track_, meeting_track_;
};

}  // namespace motley
