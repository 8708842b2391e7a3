// MeasureGate: stands between who measures devices and what else has use of them meanwhile.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "base/status.hpp"

namespace motley {

class MeasureGate {
 public:
  MeasureGate() = default;
  MeasureGate(const MeasureGate&) = delete;
  MeasureGate& operator=(const MeasureGate&) = delete;
  virtual ~MeasureGate() = default;
  // Waits until the devices are free for a timing. An error ends the measuring.
  virtual Status enter() = 0;
  // That timing is over; may take its time to come back. Once after each enter() that succeeded, on the same thread.
  virtual Status leave() = 0;
};

// What `timing` answers, through the gate if there is one (null: none).
template <class Timing>
auto through(MeasureGate* gate, const Timing& timing) -> decltype(timing()) {
  if (gate == nullptr) return timing();
  RETURN_IF_ERROR(gate->enter());
  auto answer = timing();
  const Status left = gate->leave();
  if (answer.ok() && !left.ok()) return left;
  return answer;
}

}  // namespace motley
