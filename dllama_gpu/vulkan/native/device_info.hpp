// What a GPU is and can do, as its driver reports it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <vulkan/vulkan.hpp>

#include "loader.hpp"

namespace dllama::vulkan {

struct Heap {
  uint64_t n_bytes = 0;
  uint64_t budget = 0;  // bytes that this process may still take; the whole heap where the driver does not say
  bool device_local = false;
};

struct Limits {
  uint64_t max_storage_buffer_range = 0;
  uint64_t max_memory_allocation_size = 0;
  uint32_t max_memory_allocation_count = 0;
  uint32_t max_push_constants_size = 0;
  uint32_t max_storage_buffers_per_stage = 0;
  uint32_t max_shared_memory_size = 0;
  uint32_t max_workgroup_invocations = 0;
  uint32_t max_workgroup_size[3] = {};
  uint32_t max_workgroup_count[3] = {};
  uint64_t min_storage_buffer_offset_alignment = 0;
  bool timestamps = false;
  float timestamp_period = 0;  // nanoseconds
};

struct Subgroup {
  uint32_t size = 0;
  uint32_t min_size = 0, max_size = 0;  // those that a pipeline may require; 0 without size control
  uint32_t operations = 0;              // VkSubgroupFeatureFlagBits, in compute shaders
};

struct CooperativeMatrix {  // result (m, n) = a (m, k) · b (k, n) + c, one subgroup together
  uint32_t m = 0, n = 0, k = 0;
  std::string a_type, b_type, c_type, result_type;
};

struct Features {
  bool storage_16bit = false;
  bool storage_8bit = false;
  bool float16 = false;
  bool int8 = false;
  bool int16 = false;
  bool int64 = false;
  bool subgroup_size_control = false;
  bool full_subgroups = false;
  bool integer_dot_product = false;
  bool integer_dot_product_accelerated = false;  // signed 4 x 8 bits, packed
  bool vulkan_memory_model = false;
  bool vulkan_memory_model_device_scope = false;
  bool cooperative_matrix = false;
  bool memory_budget = false;
};

struct DeviceInfo {
  std::string name, driver, driver_version, api_version, type, uuid;
  uint32_t vendor_id = 0, device_id = 0;
  std::vector<Heap> heaps;
  bool unified_memory = false;  // all of the device's memory can be mapped
  Limits limits;
  Subgroup subgroup;
  Features features;
  std::vector<CooperativeMatrix> cooperative_matrices;
};

DeviceInfo describe(const Instance& instance, const vk::PhysicalDevice& device);

// A device with every feature of `info.features`, and its one queue of `family`.
vk::Device make_device(const Instance& instance, const vk::PhysicalDevice& device, const DeviceInfo& info,
                       uint32_t family);

}  // namespace dllama::vulkan
