#include "device_info.hpp"

#include <algorithm>
#include <cstring>

#include "cooperative_matrix.hpp"

namespace dllama::vulkan {

namespace {

std::string version_text(uint32_t version) {
  return std::to_string(VK_API_VERSION_MAJOR(version)) + "." + std::to_string(VK_API_VERSION_MINOR(version)) + "." +
         std::to_string(VK_API_VERSION_PATCH(version));
}

std::string type_text(vk::PhysicalDeviceType type) {
  switch (type) {
    case vk::PhysicalDeviceType::eDiscreteGpu:
      return "discrete";
    case vk::PhysicalDeviceType::eIntegratedGpu:
      return "integrated";
    case vk::PhysicalDeviceType::eVirtualGpu:
      return "virtual";
    case vk::PhysicalDeviceType::eCpu:
      return "cpu";
    default:
      return "other";
  }
}

// The structures for features or properties of this device: each is asked for only where the device knows it.
struct Known {
  Known(const Instance& instance, const vk::PhysicalDevice& physical)
      : version(std::min(instance.api_version(), physical.getProperties().apiVersion)),
        extensions(physical.enumerateDeviceExtensionProperties()) {}

  bool extension(const char* name) const {
    return std::any_of(extensions.begin(), extensions.end(),
                       [&](const auto& found) { return std::strcmp(found.extensionName, name) == 0; });
  }
  bool either(uint32_t core_version, const char* name) const { return version >= core_version || extension(name); }

  bool storage_8bit() const { return either(VK_API_VERSION_1_2, VK_KHR_8BIT_STORAGE_EXTENSION_NAME); }
  bool float16_int8() const { return either(VK_API_VERSION_1_2, VK_KHR_SHADER_FLOAT16_INT8_EXTENSION_NAME); }
  bool memory_model() const { return either(VK_API_VERSION_1_2, VK_KHR_VULKAN_MEMORY_MODEL_EXTENSION_NAME); }
  bool driver() const { return either(VK_API_VERSION_1_2, VK_KHR_DRIVER_PROPERTIES_EXTENSION_NAME); }
  bool size_control() const { return either(VK_API_VERSION_1_3, VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME); }
  bool dot_product() const { return either(VK_API_VERSION_1_3, VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME); }
  bool budget() const { return extension(VK_EXT_MEMORY_BUDGET_EXTENSION_NAME); }
  bool matrices() const { return extension(kCooperativeMatrix) && memory_model(); }

  uint32_t version;
  std::vector<vk::ExtensionProperties> extensions;
};

// A pNext chain that grows at its front.
class Chain {
 public:
  template <class Structure>
  void add(Structure& structure, bool wanted = true) {
    if (!wanted) return;
    structure.pNext = first_;
    first_ = &structure;
  }
  void* first() const { return first_; }

 private:
  void* first_ = nullptr;
};

// Everything that is asked for and then enabled, in one piece because the structures point at each other.
struct FeatureChain {
  vk::PhysicalDeviceFeatures2 features;
  vk::PhysicalDevice16BitStorageFeatures storage_16bit;
  vk::PhysicalDevice8BitStorageFeatures storage_8bit;
  vk::PhysicalDeviceShaderFloat16Int8Features float16_int8;
  vk::PhysicalDeviceVulkanMemoryModelFeatures memory_model;
  vk::PhysicalDeviceSubgroupSizeControlFeatures size_control;
  vk::PhysicalDeviceShaderIntegerDotProductFeatures dot_product;
  CooperativeMatrixFeatures matrices;

  explicit FeatureChain(const Known& known) {
    Chain chain;
    chain.add(storage_16bit);
    chain.add(storage_8bit, known.storage_8bit());
    chain.add(float16_int8, known.float16_int8());
    chain.add(memory_model, known.memory_model());
    chain.add(size_control, known.size_control());
    chain.add(dot_product, known.dot_product());
    chain.add(matrices, known.matrices());
    features.pNext = chain.first();
  }
  FeatureChain(const FeatureChain&) = delete;
};

void find_matrices(const Instance& instance, const vk::PhysicalDevice& device, DeviceInfo& info) {
  const auto query = reinterpret_cast<CooperativeMatrixQuery>(
      VULKAN_HPP_DEFAULT_DISPATCHER.vkGetInstanceProcAddr(instance.handle(), kCooperativeMatrixQuery));
  uint32_t count = 0;
  if (!query || query(device, &count, nullptr) != VK_SUCCESS) return;
  std::vector<CooperativeMatrixProperties> found(count);
  if (query(device, &count, found.data()) != VK_SUCCESS) return;
  for (const auto& shape : found) {
    if (shape.scope != CooperativeMatrixProperties::kSubgroup) continue;
    info.cooperative_matrices.push_back({shape.MSize, shape.NSize, shape.KSize, component_type(shape.AType),
                                         component_type(shape.BType), component_type(shape.CType),
                                         component_type(shape.ResultType)});
  }
}

void read_features(const Known& known, const FeatureChain& chain, Features& features) {
  features.storage_16bit = chain.storage_16bit.storageBuffer16BitAccess;
  features.storage_8bit = chain.storage_8bit.storageBuffer8BitAccess;
  features.float16 = chain.float16_int8.shaderFloat16;
  features.int8 = chain.float16_int8.shaderInt8;
  features.int16 = chain.features.features.shaderInt16;
  features.int64 = chain.features.features.shaderInt64;
  features.subgroup_size_control = chain.size_control.subgroupSizeControl;
  features.full_subgroups = chain.size_control.computeFullSubgroups;
  features.integer_dot_product = chain.dot_product.shaderIntegerDotProduct;
  features.vulkan_memory_model = chain.memory_model.vulkanMemoryModel;
  features.vulkan_memory_model_device_scope = chain.memory_model.vulkanMemoryModelDeviceScope;
  features.cooperative_matrix = chain.matrices.cooperativeMatrix && features.vulkan_memory_model;
  features.memory_budget = known.budget();
}

void read_limits(const vk::PhysicalDeviceLimits& from, Limits& limits) {
  limits.max_storage_buffer_range = from.maxStorageBufferRange;
  limits.max_memory_allocation_count = from.maxMemoryAllocationCount;
  limits.max_push_constants_size = from.maxPushConstantsSize;
  limits.max_storage_buffers_per_stage =
      std::min(from.maxPerStageDescriptorStorageBuffers, from.maxDescriptorSetStorageBuffers);
  limits.max_shared_memory_size = from.maxComputeSharedMemorySize;
  limits.max_workgroup_invocations = from.maxComputeWorkGroupInvocations;
  for (int axis = 0; axis < 3; ++axis) {
    limits.max_workgroup_size[axis] = from.maxComputeWorkGroupSize[axis];
    limits.max_workgroup_count[axis] = from.maxComputeWorkGroupCount[axis];
  }
  limits.min_storage_buffer_offset_alignment = from.minStorageBufferOffsetAlignment;
  limits.timestamps = from.timestampComputeAndGraphics;
  limits.timestamp_period = from.timestampPeriod;
}

void read_heaps(const vk::PhysicalDevice& device, bool with_budget, DeviceInfo& info) {
  vk::PhysicalDeviceMemoryProperties2 memory;
  vk::PhysicalDeviceMemoryBudgetPropertiesEXT budget;
  if (with_budget) memory.pNext = &budget;
  device.getMemoryProperties2(&memory);
  const auto& found = memory.memoryProperties;
  for (uint32_t i = 0; i < found.memoryHeapCount; ++i) {
    const uint64_t size = found.memoryHeaps[i].size;
    uint64_t left = size;
    if (with_budget) left = budget.heapBudget[i] - std::min(budget.heapUsage[i], budget.heapBudget[i]);
    const bool local = static_cast<bool>(found.memoryHeaps[i].flags & vk::MemoryHeapFlagBits::eDeviceLocal);
    info.heaps.push_back({size, std::min(left, size), local});
  }
  // A graphics card may let a window of its memory be mapped too, but writing through it is slower than a copy.
  const bool integrated = info.type == "integrated" || info.type == "cpu";
  const auto needed = vk::MemoryPropertyFlagBits::eDeviceLocal | vk::MemoryPropertyFlagBits::eHostVisible |
                      vk::MemoryPropertyFlagBits::eHostCoherent;
  uint64_t largest = 0;
  for (const Heap& heap : info.heaps)
    if (heap.device_local) largest = std::max(largest, heap.n_bytes);
  for (uint32_t i = 0; i < found.memoryTypeCount; ++i)
    if (integrated && (found.memoryTypes[i].propertyFlags & needed) == needed &&
        info.heaps[found.memoryTypes[i].heapIndex].n_bytes == largest)
      info.unified_memory = true;
}

std::string hex(const uint8_t* bytes, size_t count) {
  static const char* digits = "0123456789abcdef";
  std::string text;
  for (size_t i = 0; i < count; ++i) text += {digits[bytes[i] >> 4], digits[bytes[i] & 15]};
  return text;
}

}  // namespace

DeviceInfo describe(const Instance& instance, const vk::PhysicalDevice& device) {
  const Known known(instance, device);
  vk::PhysicalDeviceProperties2 properties;
  vk::PhysicalDeviceIDProperties id;
  vk::PhysicalDeviceSubgroupProperties subgroup;
  vk::PhysicalDeviceMaintenance3Properties maintenance;
  vk::PhysicalDeviceDriverProperties driver;
  vk::PhysicalDeviceSubgroupSizeControlProperties size_control;
  vk::PhysicalDeviceShaderIntegerDotProductProperties dot_product;
  Chain chain;
  chain.add(id);
  chain.add(subgroup);
  chain.add(maintenance);
  chain.add(driver, known.driver());
  chain.add(size_control, known.size_control());
  chain.add(dot_product, known.dot_product());
  properties.pNext = chain.first();
  device.getProperties2(&properties);
  FeatureChain features(known);
  device.getFeatures2(&features.features);

  DeviceInfo info;
  const auto& base = properties.properties;
  info.name = base.deviceName.data();
  info.driver = driver.driverName.data();
  info.driver_version = driver.driverInfo.data();
  if (info.driver_version.empty()) info.driver_version = version_text(base.driverVersion);
  info.api_version = version_text(base.apiVersion);
  info.type = type_text(base.deviceType);
  info.uuid = hex(id.deviceUUID.data(), VK_UUID_SIZE);
  info.vendor_id = base.vendorID;
  info.device_id = base.deviceID;
  read_limits(base.limits, info.limits);
  info.limits.max_memory_allocation_size = maintenance.maxMemoryAllocationSize;
  info.subgroup.size = subgroup.subgroupSize;
  if (subgroup.supportedStages & vk::ShaderStageFlagBits::eCompute)
    info.subgroup.operations = static_cast<uint32_t>(subgroup.supportedOperations);
  if (features.size_control.subgroupSizeControl &&
      (size_control.requiredSubgroupSizeStages & vk::ShaderStageFlagBits::eCompute)) {
    info.subgroup.min_size = size_control.minSubgroupSize;
    info.subgroup.max_size = size_control.maxSubgroupSize;
  }
  read_features(known, features, info.features);
  info.features.integer_dot_product_accelerated =
      info.features.integer_dot_product && dot_product.integerDotProduct4x8BitPackedSignedAccelerated;
  if (info.features.cooperative_matrix) find_matrices(instance, device, info);
  read_heaps(device, known.budget(), info);
  return info;
}

vk::Device make_device(const Instance& instance, const vk::PhysicalDevice& device, const DeviceInfo& info,
                       uint32_t family) {
  const Known known(instance, device);
  FeatureChain wanted(known);
  wanted.features.features.shaderInt16 = info.features.int16;
  wanted.features.features.shaderInt64 = info.features.int64;
  wanted.storage_16bit.storageBuffer16BitAccess = info.features.storage_16bit;
  wanted.storage_8bit.storageBuffer8BitAccess = info.features.storage_8bit;
  wanted.float16_int8.shaderFloat16 = info.features.float16;
  wanted.float16_int8.shaderInt8 = info.features.int8;
  // Only what cooperative matrices need: shaders of another memory model may not use atomics of the whole device with it.
  wanted.memory_model.vulkanMemoryModel = info.features.cooperative_matrix;
  wanted.memory_model.vulkanMemoryModelDeviceScope =
      info.features.cooperative_matrix && info.features.vulkan_memory_model_device_scope;
  wanted.size_control.subgroupSizeControl = info.features.subgroup_size_control;
  wanted.size_control.computeFullSubgroups = info.features.full_subgroups;
  wanted.dot_product.shaderIntegerDotProduct = info.features.integer_dot_product;
  wanted.matrices.cooperativeMatrix = info.features.cooperative_matrix;
  std::vector<const char*> extensions;
  for (const char* name :
       {VK_KHR_8BIT_STORAGE_EXTENSION_NAME, VK_KHR_SHADER_FLOAT16_INT8_EXTENSION_NAME,
        VK_KHR_VULKAN_MEMORY_MODEL_EXTENSION_NAME, VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME,
        VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME,
        "VK_KHR_portability_subset"})
    if (known.extension(name)) extensions.push_back(name);
  if (info.features.cooperative_matrix) extensions.push_back(kCooperativeMatrix);
  const float priority = 1.0f;
  const vk::DeviceQueueCreateInfo queue({}, family, 1, &priority);
  vk::DeviceCreateInfo create({}, queue, {}, extensions);
  create.setPNext(&wanted.features);
  return device.createDevice(create);
}

}  // namespace dllama::vulkan
