// The plugin from outside, through its file: for tests.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <dlfcn.h>

#include <memory>
#include <string>

#include "motley/backend.h"

namespace motley::sim::testing {

// Of the plugin in `file`, which stays loaded; the first call's.
inline const motley_backend& plugin_table(const char* file) {
  static const motley_backend* const table = [file] {
    void* library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    const auto entry =
        library ? reinterpret_cast<motley_backend_entry_fn>(dlsym(library, MOTLEY_BACKEND_ENTRY)) : nullptr;
    return entry ? entry(MOTLEY_BACKEND_ABI) : nullptr;
  }();
  return *table;
}

template <class T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

struct Answer {
  motley_code code = MOTLEY_OK;
  std::string text;
};

}  // namespace motley::sim::testing
