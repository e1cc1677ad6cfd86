// What a person is told when a mapped file can no longer be read: it was cut short, or its disk is gone.
#pragma once

#include <string>

namespace dllama {

// From now on SIGBUS writes `sentence` to standard error and then ends the process as it would have anyway. Does nothing
// on systems without that signal.
void explain_bus_error(const std::string& sentence);

}  // namespace dllama
