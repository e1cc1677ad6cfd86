#include "recording.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

#include "hooks.hpp"

namespace dllama::vulkan {

namespace {

constexpr uint32_t kSetsPerPool = 256;
constexpr uint32_t kDescriptorsPerPool = 1536;
constexpr double kLastWaitSeconds = 10;

using Access = vk::AccessFlagBits;
using Stage = vk::PipelineStageFlagBits;

// Writes commands when it is recorded. Kompute keeps the op, and the op what its commands refer to.
class Commands : public kp::OpBase {
 public:
  using Write = std::function<void(const vk::CommandBuffer&)>;
  explicit Commands(Write write) : write_(std::move(write)) {}
  void record(const vk::CommandBuffer& commands) override { write_(commands); }
  void preEval(const vk::CommandBuffer&) override {}
  void postEval(const vk::CommandBuffer&) override {}

 private:
  Write write_;
};

void memory_barrier(const vk::CommandBuffer& commands, vk::PipelineStageFlags to_stage, vk::AccessFlags to_access) {
  const vk::MemoryBarrier barrier(Access::eShaderWrite | Access::eTransferWrite, to_access);
  commands.pipelineBarrier(Stage::eComputeShader | Stage::eTransfer, to_stage, {}, barrier, {}, {});
}

void device_barrier(const vk::CommandBuffer& commands) {
  memory_barrier(commands, Stage::eComputeShader | Stage::eTransfer,
                 Access::eShaderRead | Access::eShaderWrite | Access::eTransferRead | Access::eTransferWrite);
}

}  // namespace

Recording::Recording(std::shared_ptr<Device> device, uint32_t n_timestamps)
    : device_(std::move(device)), n_timestamps_(n_timestamps) {
  if (n_timestamps && !device_->info().limits.timestamps) throw VulkanError("this device has no timestamps");
  Scope scope;
  sequence_ = std::make_shared<kp::Sequence>(device_->physical(), device_->handle(), device_->queue(),
                                             device_->family(), 0);
  scope.check("a recording");
  fence_ = device_->handle()->createFence({});
  if (n_timestamps) queries_ = device_->handle()->createQueryPool({{}, vk::QueryType::eTimestamp, n_timestamps});
  record(std::make_shared<Commands>([this](const vk::CommandBuffer& commands) {
    commands_ = commands;
    if (queries_) commands.resetQueryPool(queries_, 0, n_timestamps_);
    device_barrier(commands);  // what an earlier recording wrote
  }));
}

Recording::~Recording() {
  bool idle = true;
  try {
    idle = !pending_ || wait(kLastWaitSeconds);
  } catch (const std::exception&) {  // the device was lost meanwhile: nothing runs there any more
  }
  if (!idle) {
    // Freeing what the device still uses would crash the driver; a hung device is lost anyway.
    new std::shared_ptr<kp::Sequence>(sequence_);
    new std::shared_ptr<Device>(device_);
    return;
  }
  sequence_.reset();
  for (vk::DescriptorPool pool : pools_) device_->handle()->destroy(pool);
  if (queries_) device_->handle()->destroy(queries_);
  if (fence_) device_->handle()->destroy(fence_);
}

void Recording::dispatch(const std::shared_ptr<Kernel>& kernel, const std::vector<Binding>& bindings,
                         const std::string& push, const Groups& groups) {
  check(kernel, bindings, push);
  for (int axis = 0; axis < 3; ++axis)
    if (groups[axis] == 0 || groups[axis] > device_->info().limits.max_workgroup_count[axis])
      throw VulkanError("a dispatch of " + std::to_string(groups[axis]) + " workgroups on axis " +
                        std::to_string(axis) + "; this device takes 1 to " +
                        std::to_string(device_->info().limits.max_workgroup_count[axis]));
  const vk::DescriptorSet set = descriptor_set(*kernel, bindings);
  record(std::make_shared<Commands>([this, kernel, bindings, set, push, groups](const vk::CommandBuffer& commands) {
    if (bound_ != kernel.get()) kernel->algorithm()->recordBindCore(commands);
    bound_ = kernel.get();
    commands.bindDescriptorSets(vk::PipelineBindPoint::eCompute, kernel->pipeline_layout(), 0, set, {});
    if (!push.empty())
      commands.pushConstants(kernel->pipeline_layout(), vk::ShaderStageFlagBits::eCompute, 0,
                             static_cast<uint32_t>(push.size()), push.data());
    commands.dispatch(groups[0], groups[1], groups[2]);
  }));
  ++n_dispatches_;
}

void Recording::barrier() {
  record(std::make_shared<Commands>(device_barrier));
  ++n_barriers_;
}

void Recording::host_barrier() {
  record(std::make_shared<Commands>(
      [](const vk::CommandBuffer& commands) { memory_barrier(commands, Stage::eHost, Access::eHostRead); }));
  ++n_barriers_;
}

void Recording::copy(const std::shared_ptr<Buffer>& source, uint64_t source_offset,
                     const std::shared_ptr<Buffer>& target, uint64_t target_offset, uint64_t n_bytes) {
  check_range(*source, source_offset, n_bytes, 1);
  check_range(*target, target_offset, n_bytes, 1);
  record(std::make_shared<Commands>(
      [source, source_offset, target, target_offset, n_bytes](const vk::CommandBuffer& commands) {
        commands.copyBuffer(source->handle(), target->handle(),
                            vk::BufferCopy(source_offset, target_offset, n_bytes));
      }));
}

void Recording::clear(const std::shared_ptr<Buffer>& buffer, uint64_t offset, uint64_t n_bytes) {
  check_range(*buffer, offset, n_bytes, 4);
  if (n_bytes % 4) throw VulkanError("whole words are cleared, not " + std::to_string(n_bytes) + " bytes");
  record(std::make_shared<Commands>([buffer, offset, n_bytes](const vk::CommandBuffer& commands) {
    commands.fillBuffer(buffer->handle(), offset, n_bytes, 0);
  }));
}

void Recording::timestamp() {
  if (n_stamped_ == n_timestamps_) throw VulkanError("more timestamps than the recording was made for");
  const uint32_t index = n_stamped_++;
  record(std::make_shared<Commands>([this, index](const vk::CommandBuffer& commands) {
    commands.writeTimestamp(Stage::eBottomOfPipe, queries_, index);
  }));
}

void Recording::finish() {
  require_open();
  sequence_->end();
  finished_ = true;
}

void Recording::run(double timeout_seconds) {
  if (!finished_) throw VulkanError("a recording must be finished before it runs");
  if (!(timeout_seconds > 0) || timeout_seconds > 1e6) throw VulkanError("a timeout is above 0 and at most 1e6 seconds");
  if (pending_ && !wait(timeout_seconds)) throw TimeoutError("the device is still busy with what timed out before");
  const vk::Device& handle = *device_->handle();
  try {
    handle.resetFences(fence_);
    const vk::SubmitInfo submit({}, {}, commands_);
    {
      std::lock_guard<std::mutex> lock(device_->queue_mutex());
      device_->queue()->submit(submit, fence_);
    }
  } catch (const vk::SystemError& error) {
    raise(static_cast<vk::Result>(error.code().value()), "submitting work");
  }
  pending_ = true;
  if (!wait(timeout_seconds)) {
    const double seconds = std::round(timeout_seconds * 10) / 10;
    throw TimeoutError("the device did not finish within " + std::to_string(seconds) + " s");
  }
  ran_ = true;
}

std::vector<double> Recording::timestamps() const {
  std::vector<double> seconds;
  if (!ran_ || !n_stamped_) return seconds;
  const auto found = device_->handle()->getQueryPoolResults<uint64_t>(
      queries_, 0, n_stamped_, n_stamped_ * sizeof(uint64_t), sizeof(uint64_t),
      vk::QueryResultFlagBits::e64 | vk::QueryResultFlagBits::eWait);
  for (uint64_t ticks : found.value)
    seconds.push_back(static_cast<double>(ticks) * device_->info().limits.timestamp_period * 1e-9);
  return seconds;
}

bool Recording::wait(double seconds) {
  try {
    const auto nanoseconds = static_cast<uint64_t>(seconds * 1e9);
    const vk::Result result = device_->handle()->waitForFences(fence_, VK_TRUE, nanoseconds);
    pending_ = result == vk::Result::eTimeout;
    return !pending_;
  } catch (const vk::SystemError& error) {
    pending_ = false;
    raise(static_cast<vk::Result>(error.code().value()), "waiting for the device");
  }
}

vk::DescriptorSet Recording::descriptor_set(const Kernel& kernel, const std::vector<Binding>& bindings) {
  SetKey key{kernel.set_layout(), {}};
  for (const Binding& binding : bindings) {
    const auto handle = reinterpret_cast<uint64_t>(static_cast<VkBuffer>(binding.buffer->handle()));
    key.second.push_back({handle, binding.offset, binding.n_bytes});
  }
  const auto known = sets_.find(key);
  if (known != sets_.end()) return known->second;

  const vk::Device& handle = *device_->handle();
  try {
    if (sets_left_ == 0 || descriptors_left_ < bindings.size()) {
      const vk::DescriptorPoolSize size(vk::DescriptorType::eStorageBuffer, kDescriptorsPerPool);
      pools_.push_back(handle.createDescriptorPool({{}, kSetsPerPool, size}));
      sets_left_ = kSetsPerPool;
      descriptors_left_ = kDescriptorsPerPool;
    }
    const vk::DescriptorSetLayout layout = kernel.set_layout();
    const vk::DescriptorSet set = handle.allocateDescriptorSets({pools_.back(), layout}).front();
    --sets_left_;
    descriptors_left_ -= static_cast<uint32_t>(bindings.size());
    std::vector<vk::DescriptorBufferInfo> infos;
    for (const Binding& binding : bindings)
      infos.emplace_back(binding.buffer->handle(), binding.offset, binding.n_bytes);
    std::vector<vk::WriteDescriptorSet> writes;
    for (uint32_t i = 0; i < infos.size(); ++i)
      writes.emplace_back(set, i, 0, 1, vk::DescriptorType::eStorageBuffer, nullptr, &infos[i]);
    handle.updateDescriptorSets(writes, {});
    sets_[key] = set;
    return set;
  } catch (const vk::SystemError& error) {
    raise(static_cast<vk::Result>(error.code().value()), "a descriptor set");
  }
}

void Recording::check(const std::shared_ptr<Kernel>& kernel, const std::vector<Binding>& bindings,
                      const std::string& push) const {
  require_open();
  if (bindings.size() != kernel->n_bindings())
    throw VulkanError("the kernel has " + std::to_string(kernel->n_bindings()) + " bindings, not " +
                      std::to_string(bindings.size()));
  if (push.size() != kernel->push_bytes())
    throw VulkanError("the kernel has " + std::to_string(kernel->push_bytes()) + " bytes of push constants, not " +
                      std::to_string(push.size()));
  const Limits& limits = device_->info().limits;
  for (const Binding& binding : bindings) {
    check_range(*binding.buffer, binding.offset, binding.n_bytes, limits.min_storage_buffer_offset_alignment);
    if (binding.n_bytes > limits.max_storage_buffer_range)
      throw VulkanError("a binding of " + std::to_string(binding.n_bytes) + " bytes; this device takes " +
                        std::to_string(limits.max_storage_buffer_range));
  }
}

void Recording::check_range(const Buffer& buffer, uint64_t offset, uint64_t n_bytes, uint64_t alignment) const {
  if (n_bytes == 0 || offset % alignment || offset > buffer.n_bytes() || n_bytes > buffer.n_bytes() - offset)
    throw VulkanError("bytes " + std::to_string(offset) + " to " + std::to_string(offset + n_bytes) +
                      " of a buffer of " + std::to_string(buffer.n_bytes()) + " (offsets in steps of " +
                      std::to_string(alignment) + ")");
}

void Recording::record(const std::shared_ptr<kp::OpBase>& op) {
  require_open();
  sequence_->record(op);
}

void Recording::require_open() const {
  if (finished_) throw VulkanError("the recording is finished");
}

}  // namespace dllama::vulkan
