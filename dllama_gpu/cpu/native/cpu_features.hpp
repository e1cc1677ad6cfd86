// Which kernel tables this processor can run.
#pragma once

#include <string>
#include <vector>

#include "kernel_table.hpp"

namespace dllama {

// Best first; plain C++ is always last.
std::vector<const KernelTable*> usable_kernels();

// Instruction set extensions the processor and the operating system offer, of those that some kernel here uses.
std::vector<std::string> cpu_features();

}  // namespace dllama
