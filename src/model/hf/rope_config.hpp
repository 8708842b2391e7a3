// The keys of config.json that shape the rotary position embedding: rope_theta, rope_scaling, rope_parameters.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.hpp"
#include "model/hf/settings.hpp"
#include "model/hyper_parameters.hpp"
#include "model/model.hpp"

namespace motley::hf {

inline constexpr uint64_t kContextMax = 1u << 28;

// `parameters` holds the sizes. `divisors` becomes the divisors of the frequencies, rope_dims / 2 or none. The context
// becomes what YaRN stretches it to, if that is longer.
Status read_rope(const Settings& settings, const LoadOptions& options, HyperParameters* parameters,
                 std::vector<float>* divisors);

}  // namespace motley::hf
