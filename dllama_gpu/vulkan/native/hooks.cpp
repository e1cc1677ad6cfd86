#include "hooks.hpp"

#include <atomic>

#include "errors.hpp"

namespace dllama::vulkan {

namespace {

thread_local Scope* scope = nullptr;
std::atomic<int> failing_allocations{0};
std::atomic<int> failing_submits{0};

auto& table() { return VULKAN_HPP_DEFAULT_DISPATCHER; }

// The entries as the loader gave them.
struct Originals {
  PFN_vkCreateBuffer create_buffer;
  PFN_vkGetBufferMemoryRequirements requirements;
  PFN_vkAllocateMemory allocate_memory;
  PFN_vkBindBufferMemory bind;
  PFN_vkMapMemory map;
  PFN_vkFlushMappedMemoryRanges flush;
  PFN_vkCreateCommandPool create_command_pool;
  PFN_vkAllocateCommandBuffers allocate_command_buffers;
  PFN_vkCreateShaderModule create_shader_module;
  PFN_vkCreatePipelineLayout create_pipeline_layout;
  PFN_vkCreateDescriptorPool create_descriptor_pool;
  PFN_vkCreateDescriptorSetLayout create_set_layout;
  PFN_vkAllocateDescriptorSets allocate_sets;
  PFN_vkUpdateDescriptorSets update_sets;
  PFN_vkCreateComputePipelines create_pipelines;
  PFN_vkQueueSubmit submit;
} original;

bool failed() { return scope && scope->error != VK_SUCCESS; }

VkResult note(VkResult result) {
  if (result != VK_SUCCESS && scope && scope->error == VK_SUCCESS) scope->error = result;
  return result;
}

// Skips `call` once something has failed, else remembers whether it did.
template <class Call>
VkResult guarded(Call call) {
  return failed() ? scope->error : note(call());
}

VKAPI_ATTR VkResult VKAPI_CALL create_buffer(VkDevice device, const VkBufferCreateInfo* info,
                                             const VkAllocationCallbacks* callbacks, VkBuffer* buffer) {
  VkBufferCreateInfo wanted = *info;
  wanted.usage |=
      VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT | VK_BUFFER_USAGE_INDIRECT_BUFFER_BIT;
  const VkResult result = guarded([&] { return original.create_buffer(device, &wanted, callbacks, buffer); });
  if (result == VK_SUCCESS && scope) scope->buffers.push_back(*buffer);
  return result;
}

VKAPI_ATTR void VKAPI_CALL requirements(VkDevice device, VkBuffer buffer, VkMemoryRequirements* found) {
  if (buffer)
    original.requirements(device, buffer, found);
  else
    *found = {0, 1, ~0u};
}

VKAPI_ATTR VkResult VKAPI_CALL allocate_memory(VkDevice device, const VkMemoryAllocateInfo* info,
                                               const VkAllocationCallbacks* callbacks, VkDeviceMemory* memory) {
  VkMemoryAllocateInfo wanted = *info;
  if (scope && scope->memory_type >= 0) wanted.memoryTypeIndex = static_cast<uint32_t>(scope->memory_type);
  const VkResult result = guarded([&] {
    if (failing_allocations > 0 && failing_allocations-- > 0) return VK_ERROR_OUT_OF_DEVICE_MEMORY;
    return original.allocate_memory(device, &wanted, callbacks, memory);
  });
  if (result == VK_SUCCESS && scope) scope->memories.push_back(*memory);
  return result;
}

VKAPI_ATTR VkResult VKAPI_CALL bind(VkDevice device, VkBuffer buffer, VkDeviceMemory memory, VkDeviceSize offset) {
  return guarded([&] { return original.bind(device, buffer, memory, offset); });
}

VKAPI_ATTR VkResult VKAPI_CALL map(VkDevice device, VkDeviceMemory memory, VkDeviceSize offset, VkDeviceSize size,
                                   VkMemoryMapFlags flags, void** data) {
  return guarded([&] { return original.map(device, memory, offset, size, flags, data); });
}

// All host-visible memory here is coherent, and Kompute's ranges are not always whole atoms.
VKAPI_ATTR VkResult VKAPI_CALL flush(VkDevice, uint32_t, const VkMappedMemoryRange*) { return VK_SUCCESS; }

VKAPI_ATTR VkResult VKAPI_CALL create_command_pool(VkDevice device, const VkCommandPoolCreateInfo* info,
                                                   const VkAllocationCallbacks* callbacks, VkCommandPool* pool) {
  return guarded([&] { return original.create_command_pool(device, info, callbacks, pool); });
}

VKAPI_ATTR VkResult VKAPI_CALL allocate_command_buffers(VkDevice device, const VkCommandBufferAllocateInfo* info,
                                                        VkCommandBuffer* buffers) {
  return guarded([&] { return original.allocate_command_buffers(device, info, buffers); });
}

VKAPI_ATTR VkResult VKAPI_CALL create_shader_module(VkDevice device, const VkShaderModuleCreateInfo* info,
                                                    const VkAllocationCallbacks* callbacks, VkShaderModule* module) {
  return guarded([&] { return original.create_shader_module(device, info, callbacks, module); });
}

VKAPI_ATTR VkResult VKAPI_CALL create_pipeline_layout(VkDevice device, const VkPipelineLayoutCreateInfo* info,
                                                      const VkAllocationCallbacks* callbacks,
                                                      VkPipelineLayout* layout) {
  return guarded([&] { return original.create_pipeline_layout(device, info, callbacks, layout); });
}

VKAPI_ATTR VkResult VKAPI_CALL create_descriptor_pool(VkDevice device, const VkDescriptorPoolCreateInfo* info,
                                                      const VkAllocationCallbacks* callbacks, VkDescriptorPool* pool) {
  return guarded([&] { return original.create_descriptor_pool(device, info, callbacks, pool); });
}

VKAPI_ATTR VkResult VKAPI_CALL create_set_layout(VkDevice device, const VkDescriptorSetLayoutCreateInfo* info,
                                                 const VkAllocationCallbacks* callbacks,
                                                 VkDescriptorSetLayout* layout) {
  return guarded([&] { return original.create_set_layout(device, info, callbacks, layout); });
}

VKAPI_ATTR VkResult VKAPI_CALL allocate_sets(VkDevice device, const VkDescriptorSetAllocateInfo* info,
                                             VkDescriptorSet* sets) {
  return guarded([&] { return original.allocate_sets(device, info, sets); });
}

VKAPI_ATTR void VKAPI_CALL update_sets(VkDevice device, uint32_t n_writes, const VkWriteDescriptorSet* writes,
                                       uint32_t n_copies, const VkCopyDescriptorSet* copies) {
  if (!failed()) original.update_sets(device, n_writes, writes, n_copies, copies);
}

VKAPI_ATTR VkResult VKAPI_CALL create_pipelines(VkDevice device, VkPipelineCache cache, uint32_t count,
                                                const VkComputePipelineCreateInfo* infos,
                                                const VkAllocationCallbacks* callbacks, VkPipeline* pipelines) {
  if (!scope || count != 1) return guarded([&] {
    return original.create_pipelines(device, cache, count, infos, callbacks, pipelines);
  });
  VkComputePipelineCreateInfo info = *infos;
  VkPipelineShaderStageRequiredSubgroupSizeCreateInfoEXT size{};
  size.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO_EXT;
  size.requiredSubgroupSize = scope->required_subgroup_size;
  if (scope->required_subgroup_size) info.stage.pNext = &size;
  if (scope->full_subgroups) info.stage.flags |= VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT_EXT;
  if (scope->varying_subgroups)
    info.stage.flags |= VK_PIPELINE_SHADER_STAGE_CREATE_ALLOW_VARYING_SUBGROUP_SIZE_BIT_EXT;
  const VkPipelineCache shared = scope->pipeline_cache ? scope->pipeline_cache : cache;
  return guarded([&] { return original.create_pipelines(device, shared, 1, &info, callbacks, pipelines); });
}

VKAPI_ATTR VkResult VKAPI_CALL submit(VkQueue queue, uint32_t count, const VkSubmitInfo* infos, VkFence fence) {
  if (failing_submits > 0 && failing_submits-- > 0) return VK_ERROR_DEVICE_LOST;
  return original.submit(queue, count, infos, fence);
}

template <class Function>
void replace(Function& entry, Function& saved, Function hook) {
  saved = entry;
  entry = hook;
}

}  // namespace

void install_hooks() {
  replace(table().vkCreateBuffer, original.create_buffer, &create_buffer);
  replace(table().vkGetBufferMemoryRequirements, original.requirements, &requirements);
  replace(table().vkAllocateMemory, original.allocate_memory, &allocate_memory);
  replace(table().vkBindBufferMemory, original.bind, &bind);
  replace(table().vkMapMemory, original.map, &map);
  replace(table().vkFlushMappedMemoryRanges, original.flush, &flush);
  replace(table().vkCreateCommandPool, original.create_command_pool, &create_command_pool);
  replace(table().vkAllocateCommandBuffers, original.allocate_command_buffers, &allocate_command_buffers);
  replace(table().vkCreateShaderModule, original.create_shader_module, &create_shader_module);
  replace(table().vkCreatePipelineLayout, original.create_pipeline_layout, &create_pipeline_layout);
  replace(table().vkCreateDescriptorPool, original.create_descriptor_pool, &create_descriptor_pool);
  replace(table().vkCreateDescriptorSetLayout, original.create_set_layout, &create_set_layout);
  replace(table().vkAllocateDescriptorSets, original.allocate_sets, &allocate_sets);
  replace(table().vkUpdateDescriptorSets, original.update_sets, &update_sets);
  replace(table().vkCreateComputePipelines, original.create_pipelines, &create_pipelines);
  replace(table().vkQueueSubmit, original.submit, &submit);
}

Scope::Scope() : outer_(scope) { scope = this; }

Scope::~Scope() { scope = outer_; }

void Scope::check(const std::string& what) const {
  if (error != VK_SUCCESS) raise(static_cast<vk::Result>(error), what);
}

void Scope::destroy_buffers(VkDevice device) {
  for (VkBuffer buffer : buffers) table().vkDestroyBuffer(device, buffer, nullptr);
  for (VkDeviceMemory memory : memories) table().vkFreeMemory(device, memory, nullptr);
}

void fail_allocations(int count) { failing_allocations = count; }

void fail_submits(int count) { failing_submits = count; }

}  // namespace dllama::vulkan
