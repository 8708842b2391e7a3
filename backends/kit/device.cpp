#include "kit/device.hpp"

#include <sched.h>
#include <sys/sysinfo.h>

#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>

namespace motley::kit {

uint32_t Kernels::threads(const OpenOptions& options) const {
  return options.threads ? options.threads : static_cast<uint32_t>(options.cores.size());
}

uint64_t ops_of(const KernelTable& table) {
  uint64_t mask = 0;
  for (size_t i = 0; i < table.size(); ++i)
    if (table[i].run) mask |= uint64_t{1} << i;
  return mask;
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
  std::vector<int> cores;
  const char *at = text, *end = text + std::strlen(text);
  const auto number = [&] {
    int value = -1;
    const auto [next, problem] = std::from_chars(at, end, value);
    if (problem != std::errc() || value < 0) fail(MOTLEY_INVALID_ARGUMENT, "cores \"%s\": expected e.g. 0-3,8", text);
    at = next;
    return value;
  };
  do {
    const int first = number();
    int last = first;
    if (at != end && *at == '-') ++at, last = number();
    if (last < first || last >= CPU_SETSIZE)
      fail(MOTLEY_INVALID_ARGUMENT, "cores \"%s\": %d-%d is no range", text, first, last);
    for (int core = first; core <= last; ++core) {
      if (!std::binary_search(allowed.begin(), allowed.end(), core))
        fail(MOTLEY_INVALID_ARGUMENT, "cores \"%s\": core %d is not allowed to this process", text, core);
      if (std::find(cores.begin(), cores.end(), core) == cores.end()) cores.push_back(core);
    }
    if (at != end && *at != ',') fail(MOTLEY_INVALID_ARGUMENT, "cores \"%s\": expected e.g. 0-3,8", text);
  } while (at != end && *at++ == ',');
  return cores;
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
  struct sysinfo memory {};
  if (sysinfo(&memory) == 0) desc->memory_total = uint64_t{memory.totalram} * memory.mem_unit;
  desc->memory_free = desc->memory_total;
  std::ifstream meminfo("/proc/meminfo");
  for (std::string line; std::getline(meminfo, line);)
    if (line.compare(0, 13, "MemAvailable:") == 0) {
      unsigned long long kib = 0;
      if (std::sscanf(line.c_str() + 13, "%llu", &kib) == 1) desc->memory_free = uint64_t{kib} * 1024;
    }
  desc->memory_group = 1;  // the host's memory
}

}  // namespace motley::kit

using namespace motley::kit;

motley_device::motley_device(std::unique_ptr<Kernels> kernels_in, const OpenOptions& options)
    : kernels(std::move(kernels_in)),
      table(kernels->table()),
      budget(options.memory_cap),
      team(kernels->threads(options), options.cores) {}

void motley_device::run(const Program& program, const RunArgs& args) {
  std::lock_guard lock(running_);
  const motley_batch& batch = *args.batch;
  const uint64_t need = program.workspace_bytes(batch.rows, batch.head_row_count, batch.slot_count);
  if (need > workspace_.bytes()) {
    workspace_share_ = Share();
    workspace_ = Mapping();  // the old one goes before the new one comes
    Share share(budget, page_up(need), "workspace");
    workspace_ = Mapping(need);
    workspace_share_ = std::move(share);
  }
  const auto start = std::chrono::steady_clock::now();
  program.run(team, args, workspace_.data());
  const auto spent = std::chrono::steady_clock::now() - start;
  busy_ns += static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count());
  programs += 1;
  rows += batch.rows;
}
