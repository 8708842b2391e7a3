// For tests: a charsmap (charsmap.hpp) of a few rules.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "text/charsmap.hpp"

namespace motley {

// Every node of the trie has 256 units of its own: wasteful, and simple. Rules have no empty left side.
inline std::string charsmap_of(const std::map<std::string, std::string>& rules) {
  constexpr uint32_t kBlock = 256, kLeaf = 1 << 8;
  std::map<std::string, uint32_t> nodes = {{"", 1}};  // by prefix: which block holds its children
  for (const auto& [from, to] : rules) {
    for (size_t length = 1; length <= from.size(); ++length) {
      nodes.emplace(from.substr(0, length), static_cast<uint32_t>(nodes.size()) + 1);
    }
  }
  std::vector<uint32_t> trie((nodes.size() + 1) * kBlock, 0xFF);
  std::string texts;
  for (const auto& [prefix, block] : nodes) {
    uint32_t place = 0;  // of the node's own unit
    if (!prefix.empty()) {
      const auto label = static_cast<uint8_t>(prefix.back());
      place = nodes.at(prefix.substr(0, prefix.size() - 1)) * kBlock + label;
      trie[place] = label;
    } else {
      trie[place] = 0;
    }
    trie[place] |= (place ^ block * kBlock) << 10;
    if (const auto rule = rules.find(prefix); rule != rules.end()) {
      trie[place] |= kLeaf;
      trie[block * kBlock] = uint32_t{1} << 31 | static_cast<uint32_t>(texts.size());
      texts += rule->second + '\0';
    }
  }
  std::string blob;
  const auto put = [&](uint32_t value) {
    for (int shift = 0; shift < 32; shift += 8) blob.push_back(static_cast<char>(value >> shift & 0xFF));
  };
  put(static_cast<uint32_t>(trie.size() * 4));
  for (const uint32_t unit : trie) put(unit);
  return blob + texts;
}

}  // namespace motley
