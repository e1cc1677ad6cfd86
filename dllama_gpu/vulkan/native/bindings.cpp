// The Python module dllama_gpu.vulkan._native. It holds nothing that Python does not own.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <string>
#include <tuple>

#include "device.hpp"
#include "hooks.hpp"
#include "recording.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace dllama::vulkan {

namespace {

using BindingTuple = std::tuple<std::shared_ptr<Buffer>, uint64_t, uint64_t>;

std::vector<DeviceInfo> devices() {
  const auto instance = shared_instance();
  std::vector<DeviceInfo> found;
  for (const auto& device : instance->physical_devices()) found.push_back(describe(*instance, device));
  return found;
}

std::vector<Binding> to_bindings(const std::vector<BindingTuple>& tuples) {
  std::vector<Binding> bindings;
  for (const auto& [buffer, offset, n_bytes] : tuples) bindings.push_back({buffer, offset, n_bytes});
  return bindings;
}

std::shared_ptr<Kernel> make_kernel(const std::shared_ptr<Device>& device, const py::bytes& spirv, uint32_t n_bindings,
                                    uint32_t push_bytes, const std::vector<uint32_t>& specialization,
                                    uint32_t required_subgroup_size) {
  const auto view = static_cast<std::string_view>(spirv);
  std::vector<uint32_t> words(view.size() / 4);
  std::memcpy(words.data(), view.data(), words.size() * 4);
  py::gil_scoped_release unlocked;
  return std::make_shared<Kernel>(device, words, n_bindings, push_bytes, specialization, required_subgroup_size);
}

py::array_t<uint8_t> view_of(const std::shared_ptr<Buffer>& buffer) {
  if (!buffer->mapped()) throw VulkanError("this buffer is in the device's own memory; copy it to one for reading back");
  return py::array_t<uint8_t>(static_cast<py::ssize_t>(buffer->n_bytes()), static_cast<uint8_t*>(buffer->mapped()),
                              py::cast(buffer));
}

// Errors of calls that are not looked at one by one, as the kinds that Python knows.
void translate(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const vk::SystemError& error) {
    const py::module_ module = py::module_::import("dllama_gpu.vulkan._native");
    const char* kind = "VulkanError";
    try {
      raise(static_cast<vk::Result>(error.code().value()), "Vulkan");
    } catch (const OutOfMemoryError&) {
      kind = "OutOfMemoryError";
    } catch (const DeviceLostError&) {
      kind = "DeviceLostError";
    } catch (const VulkanError&) {
    }
    PyErr_SetString(module.attr(kind).ptr(), error.what());
  }
}

void bind_info(py::module_& module) {
  py::class_<Heap>(module, "Heap")
      .def_readonly("n_bytes", &Heap::n_bytes)
      .def_readonly("budget", &Heap::budget)
      .def_readonly("device_local", &Heap::device_local);
  py::class_<Limits>(module, "Limits")
      .def_readonly("max_storage_buffer_range", &Limits::max_storage_buffer_range)
      .def_readonly("max_memory_allocation_size", &Limits::max_memory_allocation_size)
      .def_readonly("max_memory_allocation_count", &Limits::max_memory_allocation_count)
      .def_readonly("max_push_constants_size", &Limits::max_push_constants_size)
      .def_readonly("max_storage_buffers_per_stage", &Limits::max_storage_buffers_per_stage)
      .def_readonly("max_shared_memory_size", &Limits::max_shared_memory_size)
      .def_readonly("max_workgroup_invocations", &Limits::max_workgroup_invocations)
      .def_property_readonly("max_workgroup_size",
                             [](const Limits& limits) {
                               const auto& size = limits.max_workgroup_size;
                               return std::make_tuple(size[0], size[1], size[2]);
                             })
      .def_property_readonly("max_workgroup_count",
                             [](const Limits& limits) {
                               const auto& count = limits.max_workgroup_count;
                               return std::make_tuple(count[0], count[1], count[2]);
                             })
      .def_readonly("min_storage_buffer_offset_alignment", &Limits::min_storage_buffer_offset_alignment)
      .def_readonly("timestamps", &Limits::timestamps);
  py::class_<Subgroup>(module, "Subgroup")
      .def_readonly("size", &Subgroup::size)
      .def_readonly("min_size", &Subgroup::min_size)
      .def_readonly("max_size", &Subgroup::max_size)
      .def_property_readonly("operations", [](const Subgroup& subgroup) {
        static const std::pair<vk::SubgroupFeatureFlagBits, const char*> names[] = {
            {vk::SubgroupFeatureFlagBits::eBasic, "basic"},
            {vk::SubgroupFeatureFlagBits::eVote, "vote"},
            {vk::SubgroupFeatureFlagBits::eArithmetic, "arithmetic"},
            {vk::SubgroupFeatureFlagBits::eBallot, "ballot"},
            {vk::SubgroupFeatureFlagBits::eShuffle, "shuffle"},
            {vk::SubgroupFeatureFlagBits::eShuffleRelative, "shuffle_relative"},
            {vk::SubgroupFeatureFlagBits::eClustered, "clustered"},
            {vk::SubgroupFeatureFlagBits::eQuad, "quad"},
        };
        py::list found;
        for (const auto& [bit, name] : names)
          if (subgroup.operations & static_cast<uint32_t>(bit)) found.append(name);
        return py::frozenset(found);
      });
  py::class_<CooperativeMatrix>(module, "CooperativeMatrix")
      .def_readonly("m", &CooperativeMatrix::m)
      .def_readonly("n", &CooperativeMatrix::n)
      .def_readonly("k", &CooperativeMatrix::k)
      .def_readonly("a_type", &CooperativeMatrix::a_type)
      .def_readonly("b_type", &CooperativeMatrix::b_type)
      .def_readonly("c_type", &CooperativeMatrix::c_type)
      .def_readonly("result_type", &CooperativeMatrix::result_type);
  py::class_<Features>(module, "Features")
      .def_readonly("storage_16bit", &Features::storage_16bit)
      .def_readonly("storage_8bit", &Features::storage_8bit)
      .def_readonly("float16", &Features::float16)
      .def_readonly("int8", &Features::int8)
      .def_readonly("int16", &Features::int16)
      .def_readonly("int64", &Features::int64)
      .def_readonly("subgroup_size_control", &Features::subgroup_size_control)
      .def_readonly("full_subgroups", &Features::full_subgroups)
      .def_readonly("integer_dot_product", &Features::integer_dot_product)
      .def_readonly("integer_dot_product_accelerated", &Features::integer_dot_product_accelerated)
      .def_readonly("vulkan_memory_model", &Features::vulkan_memory_model)
      .def_readonly("cooperative_matrix", &Features::cooperative_matrix)
      .def_readonly("memory_budget", &Features::memory_budget);
  py::class_<DeviceInfo>(module, "DeviceInfo")
      .def_readonly("name", &DeviceInfo::name)
      .def_readonly("driver", &DeviceInfo::driver)
      .def_readonly("driver_version", &DeviceInfo::driver_version)
      .def_readonly("api_version", &DeviceInfo::api_version)
      .def_readonly("type", &DeviceInfo::type)
      .def_readonly("uuid", &DeviceInfo::uuid)
      .def_readonly("vendor_id", &DeviceInfo::vendor_id)
      .def_readonly("device_id", &DeviceInfo::device_id)
      .def_readonly("heaps", &DeviceInfo::heaps)
      .def_readonly("unified_memory", &DeviceInfo::unified_memory)
      .def_readonly("limits", &DeviceInfo::limits)
      .def_readonly("subgroup", &DeviceInfo::subgroup)
      .def_readonly("features", &DeviceInfo::features)
      .def_readonly("cooperative_matrices", &DeviceInfo::cooperative_matrices);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  auto& base = py::register_exception<VulkanError>(module, "VulkanError", PyExc_RuntimeError);
  py::register_exception<OutOfMemoryError>(module, "OutOfMemoryError", base.ptr());
  py::register_exception<DeviceLostError>(module, "DeviceLostError", base.ptr());
  py::register_exception<TimeoutError>(module, "TimeoutError", base.ptr());
  py::register_exception_translator(&translate);
  bind_info(module);
  py::enum_<BufferKind>(module, "BufferKind")
      .value("DEVICE", BufferKind::Device)
      .value("UPLOAD", BufferKind::Upload)
      .value("READBACK", BufferKind::Readback)
      .value("UNIFIED", BufferKind::Unified);
  py::class_<Buffer, std::shared_ptr<Buffer>>(module, "Buffer")
      .def_property_readonly("n_bytes", &Buffer::n_bytes)
      .def("view", &view_of);
  py::class_<Kernel, std::shared_ptr<Kernel>>(module, "Kernel")
      .def_property_readonly("n_bindings", &Kernel::n_bindings)
      .def_property_readonly("push_bytes", &Kernel::push_bytes);
  py::class_<Recording, std::shared_ptr<Recording>>(module, "Recording")
      .def(
          "dispatch",
          [](Recording& self, const std::shared_ptr<Kernel>& kernel, const std::vector<BindingTuple>& bindings,
             const py::bytes& push, const Groups& groups) {
            self.dispatch(kernel, to_bindings(bindings), push, groups);
          },
          "kernel"_a, "bindings"_a, "push"_a, "groups"_a)
      .def("barrier", &Recording::barrier)
      .def("host_barrier", &Recording::host_barrier)
      .def("copy", &Recording::copy, "source"_a, "source_offset"_a, "target"_a, "target_offset"_a, "n_bytes"_a)
      .def("clear", &Recording::clear, "buffer"_a, "offset"_a, "n_bytes"_a)
      .def("timestamp", &Recording::timestamp)
      .def("finish", &Recording::finish)
      .def("run", &Recording::run, "timeout_seconds"_a, py::call_guard<py::gil_scoped_release>())
      .def("timestamps", &Recording::timestamps)
      .def_property_readonly("n_dispatches", &Recording::n_dispatches)
      .def_property_readonly("n_barriers", &Recording::n_barriers);
  py::class_<Device, std::shared_ptr<Device>>(module, "Device")
      .def(py::init([](size_t index, bool validation, const std::string& pipeline_cache) {
             return std::make_shared<Device>(index, validation, pipeline_cache);
           }),
           "index"_a, "validation"_a = false, "pipeline_cache"_a = py::bytes())
      .def_property_readonly("info", &Device::info, py::return_value_policy::reference_internal)
      .def("heaps", &Device::heaps)
      .def("validation_messages", &Device::validation_messages)
      .def("pipeline_cache", [](const Device& self) { return py::bytes(self.pipeline_cache()); })
      .def(
          "buffer",
          [](const std::shared_ptr<Device>& self, uint64_t n_bytes, BufferKind kind) {
            return std::make_shared<Buffer>(self, n_bytes, kind);
          },
          "n_bytes"_a, "kind"_a)
      .def("kernel", &make_kernel, "spirv"_a, "n_bindings"_a, "push_bytes"_a = 0,
           "specialization"_a = std::vector<uint32_t>(), "required_subgroup_size"_a = 0)
      .def(
          "recording",
          [](const std::shared_ptr<Device>& self, uint32_t n_timestamps) {
            return std::make_shared<Recording>(self, n_timestamps);
          },
          "n_timestamps"_a = 0);
  module.def("devices", &devices);
  module.def("fail_allocations", &fail_allocations, "count"_a);
  module.def("fail_submits", &fail_submits, "count"_a);
}

}  // namespace dllama::vulkan
