#include "planner/groupings.hpp"

#include <algorithm>
#include <map>
#include <set>

namespace motley {
namespace {

constexpr size_t kTensorParallelMax = 16;  // devices of one stage, where nothing forces more
constexpr size_t kTypesAllSetsMax = 6;
const size_t kPrefixes[] = {2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256};
const size_t kDegrees[] = {2, 4, 8};

// Every labelling of devices (in order of speed) with 0 = left out, or an island; islands numbered as they appear.
void all_labellings(const std::vector<size_t>& devices, size_t next, size_t islands, std::vector<size_t>* labels,
                    std::vector<Grouping>* out) {
  if (next == devices.size()) {
    Grouping grouping(islands);
    for (size_t i = 0; i < devices.size(); ++i) {
      if ((*labels)[i] > 0) grouping[(*labels)[i] - 1].push_back(devices[i]);
    }
    if (islands > 0) out->push_back(std::move(grouping));
    return;
  }
  for (size_t label = 0; label <= islands + 1; ++label) {
    labels->push_back(label);
    all_labellings(devices, next + 1, std::max(islands, label), labels, out);
    labels->pop_back();
  }
}

Grouping singles(const std::vector<size_t>& devices) {
  Grouping grouping;
  for (const size_t d : devices) grouping.push_back({d});
  return grouping;
}

// Runs of `size`; what is left over becomes a smaller one.
void add_chunks(const std::vector<size_t>& devices, size_t size, Grouping* grouping) {
  for (size_t at = 0; at < devices.size(); at += size) {
    grouping->emplace_back(devices.begin() + static_cast<std::ptrdiff_t>(at),
                           devices.begin() + static_cast<std::ptrdiff_t>(std::min(at + size, devices.size())));
  }
}

std::vector<size_t> fastest(const DeviceTypes& types, size_t count) {
  return {types.by_speed.begin(), types.by_speed.begin() + static_cast<std::ptrdiff_t>(count)};
}

// Grows the list, each grouping once.
class GroupingList {
 public:
  void add(Grouping grouping) {
    std::erase_if(grouping, [](const Island& island) { return island.empty(); });
    if (!grouping.empty() && seen_.insert(grouping).second) list_.push_back(std::move(grouping));
  }
  // As one stage, and as a pipeline.
  void add_set(const std::vector<size_t>& devices) {
    if (devices.size() <= kTensorParallelMax) add({devices});
    add(singles(devices));
  }
  std::vector<Grouping> take() { return std::move(list_); }

 private:
  std::set<Grouping> seen_;
  std::vector<Grouping> list_;
};

void add_sets_of_types(const DeviceTypes& types, GroupingList* list) {
  const size_t sets = types.members.size() <= kTypesAllSetsMax ? size_t{1} << types.members.size() : 1;
  for (size_t set = 1; set < sets; ++set) {
    std::vector<size_t> devices;
    for (const size_t d : types.by_speed) {
      if ((set >> types.type_of[d] & 1) != 0) devices.push_back(d);
    }
    list->add_set(devices);
    for (const size_t degree : kDegrees) {
      Grouping grouping;
      for (size_t t = 0; t < types.members.size(); ++t) {
        if ((set >> t & 1) != 0) add_chunks(types.members[t], degree, &grouping);
      }
      list->add(std::move(grouping));
    }
  }
}

// Devices that share memory as one stage each, the others alone.
Grouping memory_islands(const PlanInput& input, const DeviceTypes& types) {
  std::map<std::string, Island> groups;
  Grouping grouping;
  for (const size_t d : types.by_speed) {
    const std::string& group = input.devices[d].memory_group;
    if (group.empty()) {
      grouping.push_back({d});
    } else {
      groups[group].push_back(d);
    }
  }
  for (auto& [name, island] : groups) grouping.push_back(std::move(island));
  return grouping;
}

bool allowed(const Grouping& grouping, const PlanInput& input, const PlanRequest& request) {
  size_t devices = 0;
  for (const Island& island : grouping) {
    devices += island.size();
    if (request.tensor_parallel_size > 0 && island.size() != request.tensor_parallel_size) return false;
  }
  return (request.pipeline_parallel_size == 0 || grouping.size() == request.pipeline_parallel_size) &&
         (!request.use_all_devices || devices == input.devices.size());
}

// `devices` in as many islands as asked for, of equal size but for one.
Grouping even_islands(const std::vector<size_t>& devices, size_t islands) {
  Grouping grouping;
  size_t at = 0;
  for (size_t i = 0; i < islands; ++i) {
    const size_t end = devices.size() * (i + 1) / islands;
    grouping.emplace_back(devices.begin() + static_cast<std::ptrdiff_t>(at),
                          devices.begin() + static_cast<std::ptrdiff_t>(end));
    at = end;
  }
  return grouping;
}

}  // namespace

std::vector<Grouping> free_groupings(const PlanInput& input, const DeviceTypes& types) {
  GroupingList list;
  for (const std::vector<size_t>& members : types.members) list.add({{members[0]}});
  if (input.devices.size() <= kGroupingsAllDevicesMax) {
    std::vector<Grouping> all;
    std::vector<size_t> labels;
    all_labellings(types.by_speed, 0, 0, &labels, &all);
    for (Grouping& grouping : all) list.add(std::move(grouping));
    return list.take();
  }
  for (const size_t count : kPrefixes) {
    if (count <= input.devices.size()) list.add_set(fastest(types, count));
  }
  for (const std::vector<size_t>& members : types.members) {
    for (const size_t count : kPrefixes) {
      if (count <= members.size()) {
        list.add_set({members.begin(), members.begin() + static_cast<std::ptrdiff_t>(count)});
      }
    }
  }
  add_sets_of_types(types, &list);
  list.add(singles(types.by_speed));
  list.add(memory_islands(input, types));
  // With the fastest device, one of each other type.
  for (const std::vector<size_t>& members : types.members) {
    const size_t other = members[0] != types.by_speed[0] ? members[0] : members.back();
    if (other != types.by_speed[0]) list.add_set({types.by_speed[0], other});
  }
  return list.take();
}

std::vector<Grouping> forced_groupings(const PlanInput& input, const DeviceTypes& types, const PlanRequest& request) {
  const size_t devices = input.devices.size(), width = request.tensor_parallel_size;
  std::vector<Grouping> tried;
  if (devices <= kGroupingsAllDevicesMax) {
    tried = free_groupings(input, types);
  } else {
    tried.push_back({types.by_speed});
    tried.push_back(singles(types.by_speed));
    tried.push_back(memory_islands(input, types));
    for (size_t islands = 1; islands <= devices; ++islands) {
      tried.push_back(even_islands(types.by_speed, islands));
      if (width > 0 && width * islands <= devices) {
        Grouping grouping;
        add_chunks(fastest(types, width * islands), width, &grouping);
        tried.push_back(std::move(grouping));
      }
      if (width == 0) tried.push_back(singles(fastest(types, islands)));
    }
    for (size_t degree = 2; degree <= 8; ++degree) {
      Grouping grouping;
      for (const std::vector<size_t>& members : types.members) add_chunks(members, degree, &grouping);
      tried.push_back(std::move(grouping));
    }
  }
  GroupingList list;
  for (Grouping& grouping : tried) {
    if (allowed(grouping, input, request)) list.add(std::move(grouping));
  }
  return list.take();
}

}  // namespace motley
