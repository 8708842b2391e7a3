// Device files and presets.
#include "sim/spec.hpp"

#include <gtest/gtest.h>

#include <fstream>

#include "kit/kit.hpp"

namespace motley::sim {
namespace {

constexpr const char* kWhole = R"(kind = "npu"
memory_bytes = 1_073_741_824
memory_group = 7
contention = 0.5
bandwidth_gb_s = 40
half_rows = 3.5
dispatch_us = 20
link_gb_s = 6
link_latency_us = 12.5
queue_depth = 4
jitter = 0.1
seed = 99
gflops = {f32 = 10, q8 = 80, attention = 5}
[declared]
gflops = 120
bandwidth_gb_s = 30
[[fault]]
at_program = 3
what = "slow"
for_ms = 1.5
factor = 2
[[fault]]
at_ns = 5000
what = "death"
)";

std::string refusal(const std::string& text) {
  try {
    parse_spec(text, "f.toml");
  } catch (const kit::Error& error) {
    EXPECT_EQ(error.code(), MOTLEY_INVALID_ARGUMENT);
    return error.what();
  }
  return "";
}

TEST(DeviceFile, EveryKey_IsRead) {
  const Spec spec = parse_spec(kWhole, "f.toml");
  EXPECT_EQ(spec.kind, MOTLEY_KIND_NPU);
  EXPECT_EQ(spec.memory_bytes, 1u << 30);
  EXPECT_EQ(spec.memory_group, 7u);
  EXPECT_EQ(spec.contention, 0.5);
  EXPECT_EQ(spec.rates.bandwidth_gb_s, 40);
  EXPECT_EQ(spec.rates.half_rows[kWorkQ4], 3.5);
  EXPECT_EQ(spec.rates.dispatch_us, 20);
  EXPECT_EQ(spec.rates.link_gb_s, 6);
  EXPECT_EQ(spec.rates.link_latency_us, 12.5);
  EXPECT_EQ(spec.queue_depth, 4u);
  EXPECT_EQ(spec.jitter, 0.1);
  EXPECT_EQ(spec.seed, 99u);
  EXPECT_EQ(spec.rates.gflops[kWorkF16], 10) << "a class that is not given is as fast as f32";
  EXPECT_EQ(spec.rates.gflops[kWorkQ8], 80);
  EXPECT_EQ(spec.rates.gflops[kWorkAttention], 5);
  EXPECT_EQ(spec.declared_gflops, 120);
  EXPECT_EQ(spec.declared_bandwidth_gb_s, 30);
  ASSERT_EQ(spec.faults.size(), 2u);
  EXPECT_EQ(spec.faults[0].what, Fault::kSlow);
  EXPECT_EQ(spec.faults[0].at_program, 3u);
  EXPECT_EQ(spec.faults[0].for_ns, 1'500'000);
  EXPECT_EQ(spec.faults[0].factor, 2);
  EXPECT_EQ(spec.faults[1].what, Fault::kDeath);
  EXPECT_EQ(spec.faults[1].at_ns, 5000);
}

TEST(DeviceFile, RequiredKeysAlone_GetTheDefaults) {
  const Spec spec = parse_spec("memory_bytes = 1048576\nbandwidth_gb_s = 1\ngflops = {f32 = 2}\n", "f.toml");
  EXPECT_EQ(spec.kind, MOTLEY_KIND_GPU);
  EXPECT_EQ(spec.queue_depth, 16u);
  EXPECT_EQ(spec.rates.link_gb_s, 8);
  EXPECT_EQ(spec.declared_gflops, 2);
  EXPECT_EQ(spec.declared_bandwidth_gb_s, 1);
  EXPECT_TRUE(spec.faults.empty());
}

struct Broken {
  const char* name;
  std::string from, to;  // one replacement in the whole file
  std::vector<const char*> says;
};

TEST(DeviceFile, WhatDoesNotFit_IsRefusedByLineAndKey) {
  const std::vector<Broken> all = {
      {"unknown key", "jitter = 0.1", "wobble = 1", {"f.toml:11:", "wobble", "jitter"}},
      {"unknown key of a table", "gflops = 120", "tflops = 1", {"f.toml:15:", "tflops", "bandwidth_gb_s"}},
      {"unknown key of a fault", "for_ms = 1.5", "for_s = 1", {"f.toml:20:", "for_s", "for_ms"}},
      {"no TOML", "seed = 99", "seed = ", {"f.toml:"}},
      {"text for a number", "seed = 99", "seed = \"99\"", {"f.toml:12:", "seed", "whole number"}},
      {"a part of a number", "queue_depth = 4", "queue_depth = 4.5", {"f.toml:10:", "queue_depth", "whole number"}},
      {"below", "bandwidth_gb_s = 40", "bandwidth_gb_s = 0", {"f.toml:5:", "bandwidth_gb_s", "0.001"}},
      {"beyond", "queue_depth = 4", "queue_depth = 65", {"f.toml:10:", "queue_depth", "1 .. 64"}},
      {"not a number", "half_rows = 3.5", "half_rows = nan", {"f.toml:6:", "half_rows"}},
      {"infinite", "dispatch_us = 20", "dispatch_us = inf", {"f.toml:7:", "dispatch_us"}},
      {"unknown kind", "\"npu\"", "\"tpu\"", {"f.toml:1:", "kind", "cpu, gpu, npu"}},
      {"unknown fault", "\"death\"", "\"flood\"", {"f.toml:24:", "what", "stall, death, slow"}},
      {"missing memory", "memory_bytes = 1_073_741_824\n", "", {"f.toml:1:", "memory_bytes is missing"}},
      {"missing rate", "f32 = 10, ", "", {"f.toml:13:", "f32 is missing"}},
      {"missing what", "what = \"slow\"\n", "", {"f.toml:17:", "what is missing"}},
      {"a fault at no time", "at_ns = 5000\n", "", {"f.toml:22:", "at_program or at_ns"}},
      {"a fault at two times", "at_ns = 5000", "at_ns = 5000\nat_program = 1", {"f.toml:22:", "at_program or at_ns"}},
      {"a slow fault without factor", "factor = 2\n", "", {"f.toml:17:", "factor"}},
      {"a fault of packing without a time",
       "what = \"slow\"\nfor_ms",
       "what = \"pack\"\nfor_ms",
       {"f.toml:17:", "at_ns"}},
      {"a factor of a death", "what = \"death\"", "what = \"death\"\nfactor = 2", {"f.toml:22:", "factor"}},
      {"declared as a number",
       "[declared]\ngflops = 120\nbandwidth_gb_s = 30\n",
       "declared = 4\n",
       {"f.toml:14:", "declared is a table"}},
  };
  for (const Broken& broken : all) {
    std::string text = kWhole;
    const size_t at = text.find(broken.from);
    ASSERT_NE(at, std::string::npos) << broken.name;
    text.replace(at, broken.from.size(), broken.to);
    const std::string said = refusal(text);
    EXPECT_FALSE(said.empty()) << broken.name;
    EXPECT_EQ(said.find('\n'), std::string::npos) << broken.name;
    for (const char* part : broken.says) EXPECT_NE(said.find(part), std::string::npos) << broken.name << ": " << said;
  }
}

TEST(DeviceFile, FaultThatIsNoList_IsRefused) {
  const std::string said = refusal("memory_bytes = 1048576\nbandwidth_gb_s = 1\ngflops = {f32 = 2}\nfault = 3\n");
  EXPECT_NE(said.find("f.toml:4: fault is a list"), std::string::npos) << said;
}

TEST(DeviceFile, TooLargeOrAbsent_IsRefused) {
  EXPECT_NE(refusal(std::string(kSpecBytesMax + 1, '#')).find("f.toml: more than"), std::string::npos);
  std::string faults = kWhole;
  for (size_t i = 0; i < kFaultsMax; ++i) faults += "[[fault]]\nat_program = 1\nwhat = \"stall\"\n";
  EXPECT_NE(refusal(faults).find("faults; leave some out"), std::string::npos);
  try {
    read_spec_file("/no/such/device.toml");
    FAIL() << "a file that is not there";
  } catch (const kit::Error& error) {
    EXPECT_EQ(error.code(), MOTLEY_NOT_FOUND);
    EXPECT_NE(std::string(error.what()).find("/no/such/device.toml"), std::string::npos);
  }
}

TEST(Presets, InOrder_AreHalvesOfACore) {
  const auto list = presets();
  ASSERT_GE(list.size(), 3u);
  EXPECT_EQ(list[0].label, "gpu-like");
  EXPECT_EQ(list[1].label, "igpu-like");
  EXPECT_EQ(list[2].label, "slow-gpu-like");
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_DOUBLE_EQ(list[i].core_share * (1 << i), 1);
    EXPECT_DOUBLE_EQ(list[i].rates.gflops[kWorkQ8] * (1 << i), list[0].rates.gflops[kWorkQ8]);
  }
}

TEST(Presets, Npus_AreWhatTheirNamesSay) {
  std::map<std::string, Spec> named;
  for (const Spec& spec : presets()) named[spec.label] = spec;
  for (const char* label : {"intel-npu-like", "xdna-like", "hexagon-like"}) {
    const Spec& spec = named.at(label);
    EXPECT_EQ(spec.kind, MOTLEY_KIND_NPU);
    EXPECT_FALSE(spec.rules.dynamic_rows || spec.rules.paged_attention) << label;
    EXPECT_EQ(spec.rules.weight_formats, 1u << MOTLEY_F16 | 1u << MOTLEY_Q8_0 | 1u << MOTLEY_Q4_0) << label;
    EXPECT_GT(spec.rules.allocation_bytes, 0u) << label;
    EXPECT_LT(spec.rules.allocation_bytes, spec.memory_bytes) << label;
    EXPECT_TRUE(spec.rules.programs_resident > 0 && spec.rules.reload_us > 0) << label;
    EXPECT_TRUE(spec.rules.f16_results) << label;
    EXPECT_TRUE(spec.rules.compile_s > 0 && spec.rules.compile_max_s >= spec.rules.compile_s) << label;
    EXPECT_EQ(spec.memory_group, 1u) << label << " shares the CPU's bus";
    EXPECT_EQ(spec.queue_depth, 4u) << label;
  }
  EXPECT_EQ(named.at("intel-npu-like").rates.gflops[kWorkF16], 10e3);
  EXPECT_EQ(named.at("intel-npu-like").rates.bandwidth_gb_s, 58);
  EXPECT_EQ(named.at("intel-npu-like").rates.dispatch_us, 200);
  EXPECT_EQ(named.at("intel-npu-like").rules.compile_max_s, 60);
  EXPECT_EQ(named.at("xdna-like").rates.dispatch_us, 1400);
  EXPECT_EQ(named.at("hexagon-like").memory_bytes, 3584u << 20);
  EXPECT_NE(named.at("hexagon-like").rules.without_ops >> MOTLEY_OP_EMBED & 1, 0u);
  const Rules& ascend = named.at("ascend-like").rules;
  EXPECT_TRUE(ascend.dynamic_rows && ascend.paged_attention && ascend.f16_results && ascend.compile_s > 0);
}

TEST(DeviceFile, Rules_AreRead) {
  const std::string plain = "memory_bytes = 1048576\nbandwidth_gb_s = 1\ngflops = {f32 = 2}\n";
  const Rules rules = parse_spec(plain + R"(
dynamic_rows = false
paged_attention = false
f16_results = true
f16_sums = true
without_ops = ["EMBED", "ROPE"]
weight_formats = ["F16", "Q8_0"]
allocation_bytes = 65536
programs_resident = 3
program_bytes = 4096
reload_us = 7
compile_s = 5
compile_op_s = 0.5
compile_max_s = 60
compile_wall = 0.01
blob_part = 0.2
driver = "31.0.101"
[[fault]]
what = "compile"
rows = 64
)",
                                 "f.toml")
                          .rules;
  EXPECT_FALSE(rules.dynamic_rows || rules.paged_attention);
  EXPECT_TRUE(rules.f16_results && rules.f16_sums);
  EXPECT_EQ(rules.without_ops, 1u << MOTLEY_OP_EMBED | 1u << MOTLEY_OP_ROPE);
  EXPECT_EQ(rules.weight_formats, 1u << MOTLEY_F16 | 1u << MOTLEY_Q8_0);
  EXPECT_EQ(rules.allocation_bytes, 65536u);
  EXPECT_EQ(rules.programs_resident, 3u);
  EXPECT_EQ(rules.program_bytes, 4096u);
  EXPECT_EQ(rules.reload_us, 7);
  EXPECT_EQ(rules.compile_s + rules.compile_op_s + rules.compile_max_s, 65.5);
  EXPECT_EQ(rules.compile_wall + rules.blob_part, 0.01 + 0.2);
  EXPECT_EQ(rules.driver, "31.0.101");
  const auto refused = [&](const std::string& more, const char* says) {
    EXPECT_NE(refusal(plain + more).find(says), std::string::npos) << more << ": " << refusal(plain + more);
  };
  refused("dynamic_rows = 0\n", "dynamic_rows is not true or false");
  refused("dynamic_rows = false\n", "needs paged_attention = false");
  refused("without_ops = \"EMBED\"\n", "without_ops is not a list");
  refused("without_ops = [\"EMBEDDING\"]\n", "without_ops names none of: EMBED, MATMUL");
  refused("weight_formats = []\n", "weight_formats is not a list");
  refused("weight_formats = [\"\"]\n", "weight_formats names none of: F32, F16");
  refused("weight_formats = [\"Q4_0\", \"Q8_0\"]\n", "weight_formats has none of F16, BF16, F32");
  refused("weight_formats = [\"F16\", \"F8_E4M3\"]\n", "weight_formats names none of: F32, F16");
  refused("weight_formats = [1]\n", "weight_formats names none of: F32, F16");
  refused("driver = \"\"\n", "driver is not a text of 1 to 31 bytes");
  refused("driver = 3\n", "driver is not a text");
  refused("compile_wall = 2\n", "compile_wall is not in 0 .. 1");
  refused("[[fault]]\nwhat = \"compile\"\nat_ns = 3\n", "a fault of compile is of the bucket");
  refused("[[fault]]\nwhat = \"death\"\nat_ns = 3\nrows = 4\n", "rows belongs to what = \"compile\"");
  refused("[[fault]]\nwhat = \"format\"\nat_ns = 3\n", "a fault of format is of every weight");
  refused("[[fault]]\nwhat = \"memory\"\n", "either at_program or at_ns");
  refused("[[fault]]\nwhat = \"death\"\nat_ns = 3\nleft_bytes = 4\n", "left_bytes belongs to what = \"memory\"");
}

TEST(Presets, Declared_IsOffButWithinTwice) {
  for (const Spec& spec : presets()) {
    const double gflops = spec.declared_gflops / spec.rates.gflops[kWorkQ8];
    const double bandwidth = spec.declared_bandwidth_gb_s / spec.rates.bandwidth_gb_s;
    for (const double factor : {gflops, bandwidth}) {
      EXPECT_TRUE(factor >= 0.5 && factor <= 2) << spec.label << " " << factor;
      EXPECT_TRUE(factor < 0.9 || factor > 1.1) << spec.label << " " << factor;
    }
  }
}

}  // namespace
}  // namespace motley::sim
