// Kompute 0.9.0 ignores the results of most Vulkan calls and goes on with null handles, which ends in a segmentation fault.
// Entries of vulkan.hpp's dispatch table are replaced: they keep the first error of the running thread, do nothing more
// until it was looked at, and adjust what Kompute does not let one choose.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <vulkan/vulkan.hpp>

namespace dllama::vulkan {

// Replaces the entries, once.
void install_hooks();

// What the calls of this thread made through Kompute while a `Scope` lives. Throws nothing itself.
struct Scope {
  Scope();
  ~Scope();
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

  // Throws the first error since the scope began, if there was one.
  void check(const std::string& what) const;
  // Destroys buffers and memory made in this scope, for a constructor of Kompute's that failed half-way.
  void destroy_buffers(VkDevice device);

  VkPipelineCache pipeline_cache = VK_NULL_HANDLE;  // in place of Kompute's own
  uint32_t required_subgroup_size = 0;
  bool full_subgroups = false;  // no lane of a subgroup may be missing
  bool varying_subgroups = false;  // the driver chooses their size for each shader
  int memory_type = -1;  // in place of the first that fits

  VkResult error = VK_SUCCESS;
  std::vector<VkBuffer> buffers;
  std::vector<VkDeviceMemory> memories;

 private:
  Scope* outer_;
};

// A test's way to see what happens then: the next `count` allocations of device memory fail.
void fail_allocations(int count);

// Likewise: the next `count` submits find the device lost.
void fail_submits(int count);

}  // namespace dllama::vulkan
