// Work for a device, recorded once into a kp::Sequence and run any number of times.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <kompute/Sequence.hpp>

#include "device.hpp"

namespace dllama::vulkan {

struct Binding {
  std::shared_ptr<Buffer> buffer;
  uint64_t offset = 0;
  uint64_t n_bytes = 0;
};

using Groups = std::array<uint32_t, 3>;

// Recorded from one thread, run from one thread at a time. Keeps what it refers to alive.
class Recording {
 public:
  // With `n_timestamps` above 0, timestamp() may be called so often.
  Recording(std::shared_ptr<Device> device, uint32_t n_timestamps);
  // Waits for work that a timeout has left behind.
  ~Recording();
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  void dispatch(const std::shared_ptr<Kernel>& kernel, const std::vector<Binding>& bindings, const std::string& push,
                const Groups& groups);
  // Shaders and copies behind it see what those before it wrote.
  void barrier();
  // The CPU sees after run() what was written before it.
  void host_barrier();
  void copy(const std::shared_ptr<Buffer>& source, uint64_t source_offset, const std::shared_ptr<Buffer>& target,
            uint64_t target_offset, uint64_t n_bytes);
  // Zeros; offset and size in whole words.
  void clear(const std::shared_ptr<Buffer>& buffer, uint64_t offset, uint64_t n_bytes);
  void timestamp();
  void finish();

  // Submits and waits. Throws TimeoutError, DeviceLostError, OutOfMemoryError or VulkanError; after a timeout the next
  // run waits for the earlier one first.
  void run(double timeout_seconds);

  uint32_t n_dispatches() const { return n_dispatches_; }
  uint32_t n_barriers() const { return n_barriers_; }
  // Seconds of each timestamp of the last run, from an unknown beginning.
  std::vector<double> timestamps() const;

 private:
  vk::DescriptorSet descriptor_set(const Kernel& kernel, const std::vector<Binding>& bindings);
  void check(const std::shared_ptr<Kernel>& kernel, const std::vector<Binding>& bindings, const std::string& push) const;
  void check_range(const Buffer& buffer, uint64_t offset, uint64_t n_bytes, uint64_t alignment) const;
  void record(const std::shared_ptr<kp::OpBase>& op);
  void require_open() const;
  bool wait(double seconds);

  std::shared_ptr<Device> device_;
  std::shared_ptr<kp::Sequence> sequence_;
  vk::CommandBuffer commands_;
  vk::Fence fence_;
  vk::QueryPool queries_;
  uint32_t n_timestamps_, n_stamped_ = 0;
  std::vector<vk::DescriptorPool> pools_;
  uint32_t sets_left_ = 0, descriptors_left_ = 0;
  using SetKey = std::pair<VkDescriptorSetLayout, std::vector<std::array<uint64_t, 3>>>;
  std::map<SetKey, vk::DescriptorSet> sets_;
  const Kernel* bound_ = nullptr;
  uint32_t n_dispatches_ = 0, n_barriers_ = 0;
  bool finished_ = false;
  bool pending_ = false;
  bool ran_ = false;
};

}  // namespace dllama::vulkan
