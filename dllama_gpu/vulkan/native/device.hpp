// An open device, the memory on it, and compiled shaders.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <kompute/Algorithm.hpp>
#include <kompute/Tensor.hpp>

#include "device_info.hpp"
#include "errors.hpp"

namespace dllama::vulkan {

enum class BufferKind {
  Device,    // the device's own memory
  Upload,    // host-visible, written by the CPU and read by the device
  Readback,  // host-visible, cached by the CPU where there is such memory
  Unified,   // the device's own memory, host-visible
};

class Device;

std::shared_ptr<kp::Tensor> make_tensor(const Device& device, uint64_t n_bytes, BufferKind kind);

// Bytes on a device, at most 4 GiB - 1. Keeps the device alive.
class Buffer {
 public:
  Buffer(std::shared_ptr<Device> device, uint64_t n_bytes, BufferKind kind);

  uint64_t n_bytes() const { return n_bytes_; }
  void* mapped() const { return mapped_; }  // null for BufferKind::Device
  vk::Buffer handle() const { return handle_; }
  const std::shared_ptr<kp::Tensor>& tensor() const { return tensor_; }
  const std::shared_ptr<Device>& device() const { return device_; }

 private:
  std::shared_ptr<Device> device_;
  uint64_t n_bytes_;
  std::shared_ptr<kp::Tensor> tensor_;
  vk::Buffer handle_;
  void* mapped_ = nullptr;
};

// A shader with its constants, of which the first must be the size of a workgroup. One serves any number of dispatches
// over any buffers.
class Kernel {
 public:
  Kernel(std::shared_ptr<Device> device, const std::vector<uint32_t>& spirv, uint32_t n_bindings, uint32_t push_bytes,
         const std::vector<uint32_t>& specialization, uint32_t required_subgroup_size);

  const std::shared_ptr<kp::Algorithm>& algorithm() const { return algorithm_; }
  uint32_t n_bindings() const { return n_bindings_; }
  uint32_t push_bytes() const { return push_bytes_; }
  vk::DescriptorSetLayout set_layout() const { return set_layout_; }
  vk::PipelineLayout pipeline_layout() const { return pipeline_layout_; }

 private:
  std::shared_ptr<Device> device_;
  std::shared_ptr<kp::Algorithm> algorithm_;
  uint32_t n_bindings_, push_bytes_;
  vk::DescriptorSetLayout set_layout_;
  vk::PipelineLayout pipeline_layout_;
};

class Device : public std::enable_shared_from_this<Device> {
 public:
  // Opens the `index`th of `devices()`. `pipeline_cache` is what an earlier device returned, or empty.
  Device(size_t index, bool validation, const std::string& pipeline_cache);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const DeviceInfo& info() const { return info_; }
  std::vector<std::string> validation_messages() const { return instance_->messages(); }
  std::string pipeline_cache() const;
  // The heaps as they are now.
  std::vector<Heap> heaps() const { return describe(*instance_, *physical_).heaps; }

  const std::shared_ptr<vk::PhysicalDevice>& physical() const { return physical_; }
  const std::shared_ptr<vk::Device>& handle() const { return handle_; }
  const std::shared_ptr<vk::Queue>& queue() const { return queue_; }
  uint32_t family() const { return family_; }
  std::mutex& queue_mutex() { return queue_mutex_; }
  vk::PipelineCache pipeline_cache_handle() const { return pipeline_cache_; }

  // Layouts are made once a shape; they live as long as the device.
  vk::DescriptorSetLayout set_layout(uint32_t n_bindings);
  vk::PipelineLayout pipeline_layout(uint32_t n_bindings, uint32_t push_bytes);
  int memory_type(BufferKind kind) const;
  // Bound where Kompute wants tensors that no dispatch uses.
  std::shared_ptr<kp::Tensor> placeholder();

 private:
  std::shared_ptr<Instance> instance_;
  std::shared_ptr<vk::PhysicalDevice> physical_;
  DeviceInfo info_;
  uint32_t family_ = 0;
  std::shared_ptr<vk::Device> handle_;
  std::shared_ptr<vk::Queue> queue_;
  std::mutex queue_mutex_, layout_mutex_;
  vk::PipelineCache pipeline_cache_;
  uint32_t buffer_memory_types_ = 0;
  std::map<uint32_t, vk::DescriptorSetLayout> set_layouts_;
  std::map<std::pair<uint32_t, uint32_t>, vk::PipelineLayout> pipeline_layouts_;
  std::shared_ptr<kp::Tensor> placeholder_;
};

}  // namespace dllama::vulkan
