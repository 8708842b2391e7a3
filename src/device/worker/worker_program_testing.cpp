// The smallest worker program: what `motley worker` is, for tests.
#include <cstdlib>

#include "device/worker/worker_main.hpp"

int main(int argc, char** argv) { return argc == 4 ? motley::run_worker(std::atoi(argv[3])) : 64; }
