// What unlike devices do together, on virtual time: tables for docs/benchmarks.md. Equal on every machine.
//   tools/build release sharing && build/bin/sharing
#include "planning/sharing.hpp"

#include <cstdio>

#include "base/check.hpp"
#include "model/random_model.hpp"

int main() {
  using namespace motley;
  const testing::RandomModel random(testing::sharing_model());
  const auto shape = shape_of(random.model());
  CHECK(shape.ok(), "{}", shape.error().message());
  std::puts("output tokens/s of two simulated devices, speeds r : 1, in virtual time");
  std::puts("tensor parallelism");
  for (const double r : {1.0, 2.0, 4.0, 10.0})
    std::printf("%s\n", testing::text_of(testing::share(random.model(), *shape, r)).c_str());
  std::puts("pipeline");
  for (const double r : {1.0, 2.0, 5.0})
    std::printf("%s\n", testing::text_of(testing::pipeline(random.model(), *shape, r)).c_str());
  return 0;
}
