#include "runtime/driver_trace.hpp"

#include <array>
#include <string_view>
#include <utility>

#include "device/wait.hpp"

namespace motley {
namespace {

constexpr std::array<std::string_view, MOTLEY_CUT_SAMPLE + 1> kCutNames = {
    "embed", "stage", "attention part", "ffn part", "pre", "post-pre", "post", "expert", "head", "sample"};
constexpr std::array<std::string_view, static_cast<size_t>(TapeOp::kTokens) + 1> kMeetingNames = {
    "program", "receive", "reduce", "partner", "send", "logits", "tokens"};

// Cuts that see the rows whose logits are wanted, not all.
bool of_head_rows(motley_cut cut) { return cut == MOTLEY_CUT_HEAD || cut == MOTLEY_CUT_SAMPLE; }

}  // namespace

void ProgramEvents::add(EventHandle event, const TapeProgram& program, int64_t began_ns, uint64_t number) {
  if (!newest_.event) began_ns_ = began_ns;
  number_ = number;
  if (newest_.event) earlier_.push_back(std::move(newest_));
  newest_ = {std::move(event), &program};
}

Status ProgramEvents::failed_before(const Device& device) const {
  for (const Program& each : earlier_) RETURN_IF_ERROR(event_state({&device.api(), each.event.get()}).status);
  return ok_status();
}

DriverTrace::DriverTrace(Trace* trace, const Device& device, const std::string& name, bool simulated)
    : trace_(trace), device_(device) {
  if (!on()) return;
  const std::string marked = simulated ? name + " SIMULATED" : name;
  device_track_ = trace_->track(marked, marked + ": programs, copies");
  meeting_track_ = trace_->track(marked, marked + ": meetings");
}

void DriverTrace::programs(const ProgramEvents& events, StepId step, const motley_batch& batch) {
  if (!on() || !events) return;
  for (const ProgramEvents::Program& each : events.earlier_) program(each, step, batch);
  program(events.newest_, step, batch);
}

void DriverTrace::program(const ProgramEvents::Program& each, StepId step, const motley_batch& batch) {
  const auto times = device_.times(each.event);
  if (!times.ok()) return;
  const TapeProgram& program = *each.program;
  trace_->span(device_track_, kCutNames[static_cast<size_t>(program.cut)], times->start_ns, times->end_ns,
               {{"step", static_cast<int64_t>(step)},
                {"rows", of_head_rows(program.cut) ? batch.head_row_count : batch.rows},
                {"layer_begin", program.layer_begin},
                {"layer_end", program.layer_end}});
}

void DriverTrace::copied(bool to_device, uint64_t bytes, const motley_event_times& times) {
  if (!on()) return;
  trace_->span(device_track_, to_device ? "copy to device" : "copy to host", times.start_ns, times.end_ns,
               {{"bytes", static_cast<int64_t>(bytes)}});
}

void DriverTrace::meeting(TapeOp op, StepId step, int64_t begin_ns, int64_t end_ns, uint64_t bytes) {
  if (!on()) return;
  trace_->span(meeting_track_, kMeetingNames[static_cast<size_t>(op)], begin_ns, end_ns,
               {{"step", static_cast<int64_t>(step)}, {"bytes", static_cast<int64_t>(bytes)}});
}

}  // namespace motley
