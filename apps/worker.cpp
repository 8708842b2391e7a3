#include <sys/socket.h>

#include "commands.hpp"
#include "device/worker/worker_main.hpp"

namespace motley::apps {

Status worker(const WorkerCommand& command) {
  int type = 0;
  socklen_t size = sizeof type;
  if (getsockopt(command.fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0 || type != SOCK_STREAM) {
    return invalid_argument("descriptor {} is no socket; motley starts its workers itself", command.fd);
  }
  if (const int code = run_worker(command.fd); code != 0)
    return error(MOTLEY_INTERNAL, "the worker ended with {}", code);
  return ok_status();
}

}  // namespace motley::apps
