#include "open_plan.hpp"

#include <fstream>
#include <utility>

#include "base/log.hpp"

namespace motley::apps {

Result<OpenPlan> open_plan(const InstanceOptions& options, std::vector<ListedDevice> listed) {
  OpenPlan opened;
  ASSIGN_OR_RETURN(opened.model, Model::load(options.model, {options.engine.max_model_len}));
  DeviceSetOptions open;
  open.threads = options.threads;
  open.deterministic = options.deterministic;
  open.isolation = options.isolation;
  open.compile_seconds_max = options.planning.compile_limit_s;
  ASSIGN_OR_RETURN(open.quality, parse_quality(options.quality));
  open.memory_caps = options.device_memory;
  ASSIGN_OR_RETURN(opened.devices, DeviceSet::open(std::move(listed), open));
  KvSettings kv;
  ASSIGN_OR_RETURN(kv.dtype, parse_kv_dtype(options.kv_cache_dtype));
  kv.block_size = options.block_size;
  kv.bytes = options.kv_cache_memory_bytes;
  kv.max_model_len = options.engine.max_model_len;
  opened.runtime = runtime_options(options, opened.model->config());
  ASSIGN_OR_RETURN(opened.planned, plan_model(*opened.model, opened.devices, options.planning, kv, opened.runtime,
                                              [](const std::string& what) { log_info("{}", what); }));
  return opened;
}

Status write_file(const std::string& path, std::string_view text) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << text;
  out.close();
  return out.good() ? ok_status() : error(MOTLEY_PERMISSION_DENIED, "{}: cannot be written", path);
}

}  // namespace motley::apps
