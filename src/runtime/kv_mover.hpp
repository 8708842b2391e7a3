// KvMover: KV blocks to and from the host's memory, of all who own a part of them, beside the steps.
//
// A device that does not move a run of blocks in time is lost, as one that does not finish a step. Immutable, and so
// thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.hpp"
#include "engine/executor.hpp"
#include "runtime/device_part.hpp"
#include "runtime/device_turns.hpp"

namespace motley {

class KvMover {
 public:
  // Who keeps some heads of some layers of a pool's section. Each pool of a device stands once.
  struct Owner {
    std::string device;
    std::shared_ptr<const DevicePart> part;  // shared with its drivers, and with a turn that is left behind
    uint32_t pool = 0;                       // of the executor's description

    BlockId block_begin() const { return static_cast<BlockId>(part->options().block_begin); }
    BlockId block_end() const { return block_begin() + static_cast<BlockId>(part->options().kv.blocks); }
  };
  // Blocks of a pool that lie with the same owners.
  struct Section {
    uint32_t pool = 0;
    BlockId block_begin = 0, block_end = 0;
    std::vector<Owner> savers;  // as many of the owners as hold each head of each layer: of copies, one
    uint64_t block_bytes = 0;   // of them all
  };
  // The clock is borrowed. `host_memory`: as of RuntimeOptions.
  KvMover(std::vector<Owner> owners, uint32_t pools, DeviceTurnOptions options, std::function<uint64_t()> host_memory,
          const Clock& clock)
      : owners_(std::move(owners)),
        pools_(pools),
        options_(std::move(options)),
        host_memory_(std::move(host_memory)),
        clock_(clock) {}

  // Whether all devices can.
  bool moves_kv() const;
  // As of Executor.
  Result<KvContents> save(const std::vector<KvBlock>& blocks) const;
  Result<KvLoaded> load(const std::shared_ptr<const KvContents>& contents, std::vector<KvMove> moves) const;

 private:
  Result<std::vector<Section>> sections() const;
  std::vector<Owner> savers(uint32_t pool, BlockId block_begin) const;
  Status choose_blocks(const std::vector<Section>& sections, const std::vector<KvBlock>& blocks,
                       KvContents* contents) const;
  Status check(const std::vector<Section>& all, const KvContents& contents, const std::vector<KvMove>& moves) const;

  const std::vector<Owner> owners_;
  const uint32_t pools_;
  const DeviceTurnOptions options_;
  const std::function<uint64_t()> host_memory_;
  const Clock& clock_;
};

}  // namespace motley
