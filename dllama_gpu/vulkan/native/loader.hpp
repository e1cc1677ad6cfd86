// Opens libvulkan when it is first needed and makes instances.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <vulkan/vulkan.hpp>

namespace dllama::vulkan {

// Instance of the highest version up to 1.3 that the loader has; with `validation` also the Khronos layer, core and
// synchronization checks, whose messages are collected.
class Instance {
 public:
  // Throws VulkanError where libvulkan, an instance or the layer cannot be had.
  explicit Instance(bool validation);
  ~Instance();
  Instance(const Instance&) = delete;
  Instance& operator=(const Instance&) = delete;

  vk::Instance handle() const { return handle_; }
  uint32_t api_version() const { return api_version_; }
  std::vector<vk::PhysicalDevice> physical_devices() const;  // those with Vulkan 1.1 and a compute queue
  std::vector<std::string> messages() const;
  void add_message(std::string text);

 private:
  void listen();

  vk::Instance handle_;
  uint32_t api_version_ = 0;
  VkDebugUtilsMessengerEXT messenger_ = VK_NULL_HANDLE;
  mutable std::mutex mutex_;
  std::vector<std::string> messages_;
};

// One without validation, which lives as long as the process.
std::shared_ptr<Instance> shared_instance();

}  // namespace dllama::vulkan
