#include "kit/host.hpp"

#include <sched.h>
#include <sys/sysinfo.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>

#include "kit/internal.hpp"

namespace motley::kit {

namespace {

// The file's first word as a number; nothing for "max", -1 and the like.
std::optional<uint64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  file >> word;
  uint64_t value = 0;
  const auto [end, problem] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (problem != std::errc() || end != word.data() + word.size()) return std::nullopt;
  return value;
}

// The file's first word, "1024K" or "2M", in bytes; 0 if it is none such.
int64_t read_size(const std::string& path) {
  std::ifstream file(path);
  int64_t size = 0;
  char unit = 0;
  if (!(file >> size) || size < 0 || size > (1 << 30)) return 0;
  file >> unit;
  return unit == 'K' ? size << 10 : unit == 'M' ? size << 20 : size;
}

// The number behind `key` at the start of a line; 0 if there is none.
uint64_t read_field(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    unsigned long long value = 0;
    if (line.compare(0, key.size(), key) == 0 && std::sscanf(line.c_str() + key.size(), " %llu", &value) == 1)
      return value;
  }
  return 0;
}

// Whether a list with commas between its names holds this one. The empty list holds the empty name.
bool holds_name(std::string_view names, std::string_view name) {
  for (size_t from = 0;;) {
    const size_t end = names.find(',', from);
    if (names.substr(from, end - from) == name) return true;
    if (end == std::string_view::npos) return false;
    from = end + 1;
  }
}

// Calls visit(folder) for the process's cgroup of `controller` ("" = v2) and all above it. A container may see its own
// group as the root, so groups that are not there are passed over.
void for_each_cgroup(const std::string& root, const std::string& controller,
                     const std::function<void(const std::string&)>& visit) {
  const std::string mount = root + "/sys/fs/cgroup" + (controller.empty() ? "" : "/" + controller);
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {  // "4:memory,x:/path"; v2: "0::/path"
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string names = line.substr(first + 1, second - first - 1);
    if (!holds_name(names, controller)) continue;
    std::string path = line.substr(second + 1);
    if (path.find("..") != std::string::npos) path = "/";  // a group outside this namespace's view
    for (;;) {
      while (!path.empty() && path.back() == '/') path.pop_back();
      visit(mount + path);
      if (path.empty()) break;
      path.erase(path.rfind('/'));
    }
  }
}

void bound_memory(HostMemory* memory, const std::string& folder, const char* limit_file, const char* used_file,
                  const char* cache_key) {
  const std::optional<uint64_t> limit = read_number(folder + limit_file);
  if (!limit || *limit == 0) return;
  const uint64_t used = read_number(folder + used_file).value_or(0);
  const uint64_t cache = std::min(used, read_field(folder + "/memory.stat", cache_key));
  const uint64_t held = std::min(*limit, used - cache);
  memory->total = std::min(memory->total, *limit);
  memory->free = std::min(memory->free, *limit - held);
}

// CPUs' worth of time that the cgroups give; a large number if they do not bound it.
double cpu_quota(const std::string& root) {
  double quota = CPU_SETSIZE;
  const auto bound = [&](double time, double period) {
    if (time > 0 && period > 0) quota = std::min(quota, time / period);
  };
  for_each_cgroup(root, "", [&](const std::string& folder) {
    std::ifstream file(folder + "/cpu.max");  // "max 100000" or "150000 100000"
    double time = 0, period = 0;
    if (file >> time >> period) bound(time, period);
  });
  for_each_cgroup(root, "cpu", [&](const std::string& folder) {
    bound(static_cast<double>(read_number(folder + "/cpu.cfs_quota_us").value_or(0)),
          static_cast<double>(read_number(folder + "/cpu.cfs_period_us").value_or(0)));
  });
  return quota;
}

}  // namespace

std::optional<std::vector<int>> parse_cpu_list(std::string_view text) {
  std::vector<int> list;
  const char *at = text.data(), *const end = at + text.size();
  const auto number = [&](int* value) {
    if (at == end || *at == '-') return false;
    const auto [next, problem] = std::from_chars(at, end, *value);
    at = next;
    return problem == std::errc();
  };
  for (;; ++at) {
    int first = 0;
    if (!number(&first)) return std::nullopt;
    int last = first;
    if (at != end && *at == '-') {
      ++at;
      if (!number(&last)) return std::nullopt;
    }
    if (last < first || last >= CPU_SETSIZE) return std::nullopt;
    for (int cpu = first; cpu <= last; ++cpu)
      if (std::find(list.begin(), list.end(), cpu) == list.end()) list.push_back(cpu);
    if (at == end) return list;
    if (*at != ',') return std::nullopt;
  }
}

HostMemory host_memory(const std::string& root) {
  HostMemory memory;
  memory.total = read_field(root + "/proc/meminfo", "MemTotal:") * 1024;
  memory.free = read_field(root + "/proc/meminfo", "MemAvailable:") * 1024;
  struct sysinfo info {};
  if (memory.total == 0 && sysinfo(&info) == 0) memory.total = uint64_t{info.totalram} * info.mem_unit;
  if (memory.free == 0) memory.free = memory.total;
  for_each_cgroup(root, "", [&](const std::string& folder) {
    bound_memory(&memory, folder, "/memory.max", "/memory.current", "inactive_file ");
  });
  for_each_cgroup(root, "memory", [&](const std::string& folder) {
    bound_memory(&memory, folder, "/memory.limit_in_bytes", "/memory.usage_in_bytes", "total_inactive_file ");
  });
  return memory;
}

HostCores host_cores(const std::vector<int>& allowed, const std::string& root) {
  HostCores host;
  std::vector<int> siblings;
  for (const int cpu : allowed) {
    std::ifstream file(root + "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
    std::string text;
    std::getline(file, text);
    const std::vector<int> core = parse_cpu_list(text).value_or(std::vector<int>());
    const bool taken = std::any_of(host.cores.begin(), host.cores.end(), [&](int other) {
      return other != cpu && std::find(core.begin(), core.end(), other) != core.end();
    });
    (taken ? siblings : host.cores).push_back(cpu);
  }
  const auto physical = static_cast<double>(host.cores.size());
  host.threads = static_cast<uint32_t>(std::max(1.0, std::min(physical, std::ceil(cpu_quota(root)))));
  host.cores.insert(host.cores.end(), siblings.begin(), siblings.end());
  return host;
}

std::vector<int> allowed_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cores;
  if (sched_getaffinity(0, sizeof set, &set) == 0)
    for (int i = 0; i < CPU_SETSIZE; ++i)
      if (CPU_ISSET(static_cast<size_t>(i), &set)) cores.push_back(i);
  if (cores.empty()) cores.push_back(0);
  return cores;
}

std::vector<int> parse_cores(const char* text) {
  const std::vector<int> allowed = allowed_cores();
  const std::optional<std::vector<int>> cores = parse_cpu_list(text);
  if (!cores)
    fail(MOTLEY_INVALID_ARGUMENT, "cores \"%s\": expected e.g. 0-3,8, with numbers below %d", text, CPU_SETSIZE);
  for (const int core : *cores)
    if (!std::binary_search(allowed.begin(), allowed.end(), core))
      fail(MOTLEY_INVALID_ARGUMENT, "cores \"%s\": core %d is not allowed to this process", text, core);
  return *cores;
}

void describe_host_cpu(motley_device_desc* desc) {
  desc->kind = MOTLEY_KIND_CPU;
  std::ifstream info("/proc/cpuinfo");
  const auto take = [](const std::string& line, const char* key, char* out, size_t size) {
    if (*out || line.compare(0, std::strlen(key), key) != 0) return;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) std::snprintf(out, size, "%s", line.c_str() + colon + 2);
  };
  desc->vendor[0] = desc->model[0] = 0;
  for (std::string line; std::getline(info, line) && !line.empty();) {
    take(line, "vendor_id", desc->vendor, sizeof desc->vendor);
    take(line, "model name", desc->model, sizeof desc->model);
  }
  const HostMemory memory = host_memory();
  desc->memory_total = memory.total, desc->memory_free = memory.free;
  desc->memory_group = 1;  // the host's memory
  desc->threads = host_cores(allowed_cores()).threads;
}

HostCaches host_caches(const std::string& root) {
  HostCaches caches;
  for (int i = 0; i < 8; ++i) {
    const std::string folder = root + "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(i);
    const uint64_t level = read_number(folder + "/level").value_or(0);
    if (level == 2) caches.second = read_size(folder + "/size");
    if (level == 3) caches.third = read_size(folder + "/size");
  }
  return caches;
}

}  // namespace motley::kit
