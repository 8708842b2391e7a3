// ServingGate: gives measuring the devices between an engine's steps, for a twentieth of the time.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <stop_token>

#include "engine/engine.hpp"
#include "runtime/measure_gate.hpp"

namespace motley {

// One thread uses it. The engine plans no step between enter() and leave(), but for one second at most: a device that
// hangs must not hold up the requests. leave() comes back after 19 times as long as that took, if there are requests.
class ServingGate final : public MeasureGate {
 public:
  // `engine` is borrowed. `stop`: nobody waits for the figures any more; both then answer CANCELLED.
  ServingGate(Engine& engine, std::stop_token stop);
  ~ServingGate() override;
  // As of Engine::between_steps().
  Status enter() override;
  Status leave() override;

 private:
  class Turn;
  Engine& engine_;
  const std::stop_token stop_;
  std::shared_ptr<Turn> turn_;  // between enter() and leave(); shared with the engine
};

}  // namespace motley
