// SPDX-License-Identifier: Apache-2.0
#include "ref/ref_backend.hpp"

MOTLEY_KIT_PLUGIN(motley::kit::RefBackend, "ref", "0.1.0")
