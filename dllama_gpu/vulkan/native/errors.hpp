// What can go wrong on a device, in kinds that Python tells apart.
#pragma once

#include <stdexcept>
#include <string>

#include <vulkan/vulkan.hpp>

namespace dllama::vulkan {

struct VulkanError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct OutOfMemoryError : VulkanError {
  using VulkanError::VulkanError;
};

struct DeviceLostError : VulkanError {
  using VulkanError::VulkanError;
};

struct TimeoutError : VulkanError {
  using VulkanError::VulkanError;
};

// Throws the kind of error that `result` is, with `what` in front.
[[noreturn]] inline void raise(vk::Result result, const std::string& what) {
  const std::string message = what + ": " + vk::to_string(result);
  switch (result) {
    case vk::Result::eErrorOutOfHostMemory:
    case vk::Result::eErrorOutOfDeviceMemory:
    case vk::Result::eErrorMemoryMapFailed:
    case vk::Result::eErrorTooManyObjects:
      throw OutOfMemoryError(message);
    case vk::Result::eErrorDeviceLost:
      throw DeviceLostError(message);
    default:
      throw VulkanError(message);
  }
}

}  // namespace dllama::vulkan
