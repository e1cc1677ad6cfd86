#include "device.hpp"

#include <cstdlib>

#include "hooks.hpp"

namespace dllama::vulkan {

namespace {

constexpr uint64_t kMostBytes = 0xffffffffull;  // Kompute counts in 32 bits
constexpr uint32_t kPlaceholderBytes = 256;

using Property = vk::MemoryPropertyFlagBits;

uint32_t compute_family(const vk::PhysicalDevice& device) {
  const auto families = device.getQueueFamilyProperties();
  uint32_t found = 0;
  bool any = false;
  for (uint32_t i = 0; i < families.size(); ++i) {
    if (!(families[i].queueFlags & vk::QueueFlagBits::eCompute)) continue;
    // One without graphics does not share with a desktop that draws.
    const bool apart = !(families[i].queueFlags & vk::QueueFlagBits::eGraphics);
    if (!any || apart) found = i;
    any = true;
    if (apart) break;
  }
  return found;
}

// Whether a shader says that it uses cooperative matrices, whose layout is that of one size of subgroups.
bool uses_matrices(const std::vector<uint32_t>& spirv) {
  constexpr uint32_t kOpCapability = 2u << 16 | 17u, kCooperativeMatrixKHR = 6022;
  for (size_t i = 5; i + 1 < spirv.size() && spirv[i] == kOpCapability; i += 2)
    if (spirv[i + 1] == kCooperativeMatrixKHR) return true;
  return false;
}

struct FreedZeros {
  void operator()(void* memory) const { std::free(memory); }
};

}  // namespace

std::shared_ptr<kp::Tensor> make_tensor(const Device& device, uint64_t n_bytes, BufferKind kind) {
  if (n_bytes == 0 || n_bytes > kMostBytes) throw VulkanError("a buffer has 1 byte to 4 GiB - 1");
  const std::string what = "a buffer of " + std::to_string(n_bytes) + " bytes";
  Scope scope;
  scope.memory_type = device.memory_type(kind);
  const bool mapped = kind != BufferKind::Device;
  // Kompute copies from here into what it maps; untouched pages of calloc cost nothing.
  std::unique_ptr<void, FreedZeros> zeros(mapped ? std::calloc(n_bytes, 1) : nullptr);
  if (mapped && !zeros) throw OutOfMemoryError(what + ": no memory for zeros");
  std::shared_ptr<kp::Tensor> tensor;
  try {
    tensor = std::make_shared<kp::Tensor>(device.physical(), device.handle(), zeros.get(),
                                          static_cast<uint32_t>(n_bytes), 1, kp::Tensor::TensorDataTypes::eBool,
                                          mapped ? kp::Tensor::TensorTypes::eHost : kp::Tensor::TensorTypes::eStorage);
  } catch (const std::exception& error) {
    scope.destroy_buffers(*device.handle());
    scope.check(what);
    throw VulkanError(what + ": " + error.what());
  }
  scope.check(what);
  return tensor;
}

Buffer::Buffer(std::shared_ptr<Device> device, uint64_t n_bytes, BufferKind kind)
    : device_(std::move(device)), n_bytes_(n_bytes), tensor_(make_tensor(*device_, n_bytes, kind)) {
  handle_ = tensor_->constructDescriptorBufferInfo().buffer;
  if (kind != BufferKind::Device) mapped_ = tensor_->rawData();
}

Kernel::Kernel(std::shared_ptr<Device> device, const std::vector<uint32_t>& spirv, uint32_t n_bindings,
               uint32_t push_bytes, const std::vector<uint32_t>& specialization, uint32_t required_subgroup_size)
    : device_(std::move(device)), n_bindings_(n_bindings), push_bytes_(push_bytes) {
  const Limits& limits = device_->info().limits;
  if (spirv.size() < 5 || spirv[0] != 0x07230203) throw VulkanError("a kernel needs SPIR-V");
  if (n_bindings == 0 || n_bindings > limits.max_storage_buffers_per_stage)
    throw VulkanError("a kernel of this device has 1 to " + std::to_string(limits.max_storage_buffers_per_stage) +
                      " bindings, not " + std::to_string(n_bindings));
  if (push_bytes % 4 || push_bytes > limits.max_push_constants_size)
    throw VulkanError("push constants of this device are whole words of at most " +
                      std::to_string(limits.max_push_constants_size) + " bytes, not " + std::to_string(push_bytes));
  const Subgroup& subgroup = device_->info().subgroup;
  if (required_subgroup_size && (required_subgroup_size < subgroup.min_size || required_subgroup_size > subgroup.max_size))
    throw VulkanError("this device has no subgroups of " + std::to_string(required_subgroup_size));
  set_layout_ = device_->set_layout(n_bindings);
  pipeline_layout_ = device_->pipeline_layout(n_bindings, push_bytes);
  const std::shared_ptr<kp::Tensor> placeholder = device_->placeholder();
  Scope scope;
  scope.pipeline_cache = device_->pipeline_cache_handle();
  scope.required_subgroup_size = required_subgroup_size;
  // The first constant is the size of a workgroup.
  const uint32_t subgroup_size = required_subgroup_size ? required_subgroup_size : subgroup.size;
  scope.full_subgroups =
      device_->info().features.full_subgroups && !specialization.empty() && specialization[0] % subgroup_size == 0;
  // Full subgroups of a size that nobody chose are the widest on Intel, where half of that is faster for most shaders.
  // Tuning counts on at most the size that the device reports.
  scope.varying_subgroups = scope.full_subgroups && !required_subgroup_size && subgroup.max_size &&
                            subgroup.max_size <= subgroup.size && !uses_matrices(spirv);
  try {
    algorithm_ = std::make_shared<kp::Algorithm>(
        device_->handle(), std::vector<std::shared_ptr<kp::Tensor>>(n_bindings, placeholder), spirv,
        kp::Workgroup{1, 1, 1}, specialization, std::vector<uint32_t>(push_bytes / 4));
  } catch (const std::exception& error) {
    scope.check("a shader");
    throw VulkanError(std::string("a shader: ") + error.what());
  }
  scope.check("a shader");
}

Device::Device(size_t index, bool validation, const std::string& pipeline_cache)
    : instance_(validation ? std::make_shared<Instance>(true) : shared_instance()) {
  const auto devices = instance_->physical_devices();
  if (index >= devices.size()) throw VulkanError("there is no Vulkan device " + std::to_string(index));
  // Kompute's objects hold these; the device must outlive the last of them, and the instance the device.
  physical_ = std::make_shared<vk::PhysicalDevice>(devices[index]);
  info_ = describe(*instance_, *physical_);
  family_ = compute_family(*physical_);
  try {
    handle_ = std::shared_ptr<vk::Device>(new vk::Device(make_device(*instance_, *physical_, info_, family_)),
                                          [instance = instance_](vk::Device* device) {
                                            device->destroy();
                                            delete device;
                                          });
  } catch (const vk::SystemError& error) {
    raise(static_cast<vk::Result>(error.code().value()), "opening " + info_.name);
  }
  queue_ = std::make_shared<vk::Queue>(handle_->getQueue(family_, 0));
  try {
    pipeline_cache_ = handle_->createPipelineCache({{}, pipeline_cache.size(), pipeline_cache.data()});
  } catch (const vk::SystemError&) {  // it is only a cache
    pipeline_cache_ = handle_->createPipelineCache({});
  }
  // The same for all buffers of the same usage, says the specification.
  const vk::BufferCreateInfo probe({}, 256, vk::BufferUsageFlagBits::eStorageBuffer);
  const vk::Buffer buffer = handle_->createBuffer(probe);
  buffer_memory_types_ = handle_->getBufferMemoryRequirements(buffer).memoryTypeBits;
  handle_->destroy(buffer);
}

Device::~Device() {
  // Buffers, kernels and recordings hold the device, so none is left.
  for (const auto& [key, layout] : pipeline_layouts_) handle_->destroy(layout);
  for (const auto& [key, layout] : set_layouts_) handle_->destroy(layout);
  if (pipeline_cache_) handle_->destroy(pipeline_cache_);
}

std::string Device::pipeline_cache() const {
  const std::vector<uint8_t> data = handle_->getPipelineCacheData(pipeline_cache_);
  return {data.begin(), data.end()};
}

vk::DescriptorSetLayout Device::set_layout(uint32_t n_bindings) {
  std::lock_guard<std::mutex> lock(layout_mutex_);
  vk::DescriptorSetLayout& layout = set_layouts_[n_bindings];
  if (!layout) {
    std::vector<vk::DescriptorSetLayoutBinding> bindings;
    for (uint32_t i = 0; i < n_bindings; ++i)
      bindings.emplace_back(i, vk::DescriptorType::eStorageBuffer, 1, vk::ShaderStageFlagBits::eCompute);
    layout = handle_->createDescriptorSetLayout({{}, bindings});
  }
  return layout;
}

vk::PipelineLayout Device::pipeline_layout(uint32_t n_bindings, uint32_t push_bytes) {
  const vk::DescriptorSetLayout set = set_layout(n_bindings);
  std::lock_guard<std::mutex> lock(layout_mutex_);
  vk::PipelineLayout& layout = pipeline_layouts_[{n_bindings, push_bytes}];
  if (!layout) {
    const vk::PushConstantRange range(vk::ShaderStageFlagBits::eCompute, 0, push_bytes);
    vk::PipelineLayoutCreateInfo info({}, set);
    if (push_bytes) info.setPushConstantRanges(range);
    layout = handle_->createPipelineLayout(info);
  }
  return layout;
}

int Device::memory_type(BufferKind kind) const {
  const vk::MemoryPropertyFlags mapped = Property::eHostVisible | Property::eHostCoherent;
  std::vector<vk::MemoryPropertyFlags> wishes;
  switch (kind) {
    case BufferKind::Device:
      wishes = {Property::eDeviceLocal};
      break;
    case BufferKind::Upload:
      wishes = {mapped};
      break;
    case BufferKind::Readback:
      wishes = {mapped | Property::eHostCached, mapped};
      break;
    case BufferKind::Unified:
      wishes = {mapped | Property::eDeviceLocal};
      break;
  }
  const auto types = physical_->getMemoryProperties();
  const auto heap_bytes = [&](int type) { return types.memoryHeaps[types.memoryTypes[type].heapIndex].size; };
  for (const vk::MemoryPropertyFlags& wish : wishes) {
    int found = -1;
    for (int i = 0; i < static_cast<int>(types.memoryTypeCount); ++i) {
      if (!(buffer_memory_types_ >> i & 1) || (types.memoryTypes[i].propertyFlags & wish) != wish) continue;
      // Of the device's own memory the largest heap: beside it there may be a window of 256 MiB.
      const bool larger = found >= 0 && (wish & Property::eDeviceLocal) && heap_bytes(i) > heap_bytes(found);
      if (found < 0 || larger) found = i;
    }
    if (found >= 0) return found;
  }
  throw VulkanError(info_.name + " has no memory of the kind asked for");
}

std::shared_ptr<kp::Tensor> Device::placeholder() {
  std::lock_guard<std::mutex> lock(layout_mutex_);
  if (!placeholder_) placeholder_ = make_tensor(*this, kPlaceholderBytes, BufferKind::Upload);
  return placeholder_;
}

}  // namespace dllama::vulkan
