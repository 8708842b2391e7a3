"""tools/layers finds each kind of breach in a small house that has just that one."""
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ROOT / "tools/layers"

CLEAN = {
    "include/motley/types.h": "#ifndef T\n#define T\n#endif\n",
    "include/motley/backend.h": '#ifndef B\n#define B\n#include "motley/types.h"\n#endif\n',
    "src/base/status.hpp": '#pragma once\n#include <fmt/format.h>\n#include "motley/types.h"\n',
    "src/base/status.cpp": '#include "base/status.hpp"\n',
    "src/base/README.md": "# base\n",
    "src/base/CMakeLists.txt": "motley_room(base SOURCES status.cpp LINK fmt::fmt)\n",
    "src/engine/engine.hpp": '#pragma once\n#include "base/status.hpp"\n',
    "src/engine/engine.cpp": '#include "engine/engine.hpp"\n#include <fmt/format.h>\n#include <vector>\n',
    "src/engine/README.md": "# engine\n",
    "src/engine/CMakeLists.txt": "motley_room(engine SOURCES engine.cpp LINK motley_base TESTS engine_test.cpp)\n",
    "src/model/architectures/sparrow.cpp": '#include "base/status.hpp"\n// sparrow\n',
    "src/model/README.md": "# model\n",
    "src/runtime/runtime.cpp": '#include "engine/executor.hpp"\n',
    "src/engine/executor.hpp": "#pragma once\n",
    "src/runtime/README.md": "# runtime\n",
    "backends/kit/kit.hpp": '#pragma once\n#include "motley/backend.h"\n',
    "backends/cpu/cpu.cpp": '#include "kit/kit.hpp"\n#include <immintrin.h>\n',
    "backends/cpu/README.md": "# cpu\n",
}


@pytest.fixture
def house(tmp_path):
    shutil.copy(ROOT / "ARCHITECTURE.md", tmp_path)
    for path, text in CLEAN.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def judge(house):
    done = subprocess.run([str(LAYERS), "--root", str(house)], capture_output=True, text=True)
    return done.returncode, done.stdout


def test_clean_house_passes(house):
    status, output = judge(house)
    assert status == 0, output
    assert output.strip().endswith(" 0 failed")


BREACHES = {
    "two_types_of_one_name": ("src/engine/engine.cpp", "namespace motley {\nstruct A {\n};\n}  // namespace motley\n"
                              "namespace motley {\nclass A : B {\n};\n}  // namespace motley\n", "is also in"),
    "upward_include": ("src/base/status.cpp", '#include "engine/engine.hpp"\n', "src/base may not include"),
    "sideways_include": ("src/engine/engine.cpp", '#include "model/model.hpp"\n', "is no file"),
    "engine_sees_a_device": ("src/engine/engine.cpp", '#include "motley/backend.h"\n', "src/engine may not include"),
    "runtime_sees_the_scheduler": ("src/runtime/runtime.cpp", '#include "engine/engine.hpp"\n',
                                   "src/runtime may not include"),
    "library": ("src/engine/engine.cpp", "#include <boost/asio.hpp>\n", "may not use Boost"),
    "backend_sees_a_room": ("backends/cpu/cpu.cpp", '#include "base/status.hpp"\n', "may not include"),
    "room_sees_a_backend": ("src/runtime/runtime.cpp", '#include "kit/kit.hpp"\n', "may not include"),
    "link_of_a_room": ("src/engine/CMakeLists.txt", "motley_room(engine SOURCES engine.cpp LINK motley_runtime)\n",
                       "may not link motley_runtime"),
    "link_of_a_library": ("src/engine/CMakeLists.txt", "target_link_libraries(motley_engine PRIVATE Boost::headers)\n",
                          "may not link Boost::headers"),
    "vendor_header": ("src/runtime/runtime.cpp", "#include <cuda_runtime.h>\n", "outside backends/cuda/"),
    "intrinsics": ("src/engine/engine.cpp", "#include <immintrin.h>\n", "outside backends/cpu/"),
    "vendor_macro": ("src/engine/engine.cpp", "#ifdef __CUDACC__\n#endif\n", "outside backends/cuda/"),
    "architecture_name": ("src/engine/engine.cpp", "// as in Sparrow\n", "names the architecture"),
    "environment": ("src/engine/engine.cpp", 'auto x = std::getenv("X");\n', "getenv"),
    "abi_size": ("include/motley/backend.h", "#ifndef B\n#define B\n" + "\n" * 450 + "#endif\n", "at most 450"),
    "file_size": ("src/engine/engine.cpp", "\n" * 801, "at most 800"),
    "function_size": ("src/engine/engine.cpp",
                      "namespace motley {\nstruct A {\n  A() : a{1} {" + "\n" * 75 + "}\n  int a;\n};\n}\n", "at most 70"),
    "free_function_size": ("src/engine/engine.cpp", "int f(int a) {\n  for (;;) {\n  }" + "\n" * 75 + "}\n", "at most 70"),
    "readme_missing": ("src/llm/llm.cpp", "\n", "src/llm/README.md: is missing"),
    "readme_size": ("src/engine/README.md", "\n" * 31, "more than 30"),
    "marker": ("src/engine/engine.cpp", "// TO" + "DO: later\n", "leftover marker"),
    "pragma_once": ("src/engine/engine.hpp", "\n", "no #pragma once"),
    "own_header_in_angles": ("src/engine/engine.cpp", "#include <base/status.hpp>\n", "angle brackets"),
    "not_from_the_root": ("src/engine/engine.cpp", '#include "engine.hpp"\n', "not written from the project root"),
}


@pytest.mark.parametrize("name", BREACHES)
def test_breach_is_found(house, name):
    path, text, expected = BREACHES[name]
    file = house / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    status, output = judge(house)
    assert status == 1, output
    assert expected in output
    assert output.strip().endswith(" 1 failed"), output


def test_short_functions_and_tables_pass(house):
    lines = "\n".join(f"  {{{i}, \"{{\"}},  // {{" for i in range(200))
    (house / "src/engine/engine.cpp").write_text(
        "namespace {\nconstexpr Row kRows[] = {\n" + lines + "\n};\n"
        "template <typename T>\nstruct B : C<T> {\n" + "  int f() const { return 1; }\n" * 100 + "};\n"
        "A::A(int x)\n    : a_(x), b_{x} {\n  g('{');\n}\n}  // namespace\n")
    status, output = judge(house)
    assert status == 0, output
