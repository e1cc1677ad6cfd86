#include "bus_error.hpp"

#ifndef _WIN32
#include <signal.h>
#include <unistd.h>
#endif

namespace dllama {

#ifndef _WIN32
namespace {

std::string told;

void tell(int signal_number) {
  if (write(STDERR_FILENO, told.data(), told.size()) < 0) {
    // There is nobody to tell it to.
  }
  signal(signal_number, SIG_DFL);  // the access is tried again, and fails for good
}

}  // namespace
#endif

void explain_bus_error(const std::string& sentence) {
#ifdef _WIN32
  (void)sentence;
#else
  if (!told.empty()) return;  // a handler may be reading it
  told = sentence;
  signal(SIGBUS, tell);
#endif
}

}  // namespace dllama
