// The plugin's table.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "motley/backend.h"

namespace motley::sim {

const motley_backend& table();  // lives as long as the library

}  // namespace motley::sim
