// SPDX-License-Identifier: Apache-2.0
#include "kit/reference_backend.hpp"

MOTLEY_KIT_PLUGIN(motley::kit::RefBackend, "ref", "0.1.0")
