#include "loader.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "errors.hpp"
#include "hooks.hpp"

VULKAN_HPP_DEFAULT_DISPATCH_LOADER_DYNAMIC_STORAGE

namespace dllama::vulkan {

namespace {

#if VK_HEADER_VERSION >= 301
using Library = vk::detail::DynamicLoader;
#else
using Library = vk::DynamicLoader;
#endif

constexpr const char* kValidationLayer = "VK_LAYER_KHRONOS_validation";
#ifdef VK_KHR_portability_enumeration
constexpr const char* kPortability = VK_KHR_PORTABILITY_ENUMERATION_EXTENSION_NAME;
#endif

// What the operating system calls the loader; on macOS also MoltenVK itself, which Homebrew keeps off the usual path.
std::vector<std::string> library_names() {
#if defined(_WIN32)
  return {"vulkan-1.dll"};
#elif defined(__APPLE__)
  std::vector<std::string> names;
  if (const char* sdk = std::getenv("VULKAN_SDK")) names.push_back(std::string(sdk) + "/lib/libvulkan.1.dylib");
  for (const char* folder : {"", "/opt/homebrew/lib/", "/usr/local/lib/"})
    for (const char* name : {"libvulkan.1.dylib", "libMoltenVK.dylib"}) names.push_back(std::string(folder) + name);
  return names;
#else
  return {"libvulkan.so.1", "libvulkan.so"};
#endif
}

// Never closed: drivers do not always survive it.
Library& library() {
  static Library* loaded = [] {
    for (const std::string& name : library_names()) {
      try {
        return new Library(name);
      } catch (const std::runtime_error&) {  // not under this name
      }
    }
    throw VulkanError("libvulkan is not installed");
  }();
  return *loaded;
}

bool has_layer(const char* name) {
  for (const auto& layer : vk::enumerateInstanceLayerProperties())
    if (std::strcmp(layer.layerName, name) == 0) return true;
  return false;
}

bool has_extension(const char* name, const char* layer = nullptr) {
  const auto properties =
      layer ? vk::enumerateInstanceExtensionProperties(std::string(layer)) : vk::enumerateInstanceExtensionProperties();
  for (const auto& extension : properties)
    if (std::strcmp(extension.extensionName, name) == 0) return true;
  return false;
}

VKAPI_ATTR VkBool32 VKAPI_CALL on_message(VkDebugUtilsMessageSeverityFlagBitsEXT, VkDebugUtilsMessageTypeFlagsEXT,
                                          const VkDebugUtilsMessengerCallbackDataEXT* data, void* user) {
  static_cast<Instance*>(user)->add_message(data->pMessage ? data->pMessage : "");
  return VK_FALSE;
}

}  // namespace

Instance::Instance(bool validation) {
  static std::once_flag opened, completed;
  std::call_once(opened, [] {
    VULKAN_HPP_DEFAULT_DISPATCHER.init(library().getProcAddress<PFN_vkGetInstanceProcAddr>("vkGetInstanceProcAddr"));
  });
  uint32_t loader_version = VK_API_VERSION_1_0;
  if (VULKAN_HPP_DEFAULT_DISPATCHER.vkEnumerateInstanceVersion) loader_version = vk::enumerateInstanceVersion();
  if (loader_version < VK_API_VERSION_1_1) throw VulkanError("libvulkan is older than Vulkan 1.1");
  api_version_ = std::min(loader_version, static_cast<uint32_t>(VK_API_VERSION_1_3));

  std::vector<const char*> layers, extensions;
  vk::InstanceCreateFlags flags;
#ifdef VK_KHR_portability_enumeration
  if (has_extension(kPortability)) {
    extensions.push_back(kPortability);
    flags |= vk::InstanceCreateFlagBits::eEnumeratePortabilityKHR;
  }
#endif
  vk::ValidationFeaturesEXT features;
  const vk::ValidationFeatureEnableEXT enabled[] = {vk::ValidationFeatureEnableEXT::eSynchronizationValidation};
  features.setEnabledValidationFeatures(enabled);
  if (validation) {
    if (!has_layer(kValidationLayer)) throw VulkanError("the Khronos validation layer is not installed");
    layers.push_back(kValidationLayer);
    if (has_extension(VK_EXT_VALIDATION_FEATURES_EXTENSION_NAME, kValidationLayer))
      extensions.push_back(VK_EXT_VALIDATION_FEATURES_EXTENSION_NAME);
    extensions.push_back(VK_EXT_DEBUG_UTILS_EXTENSION_NAME);
  }
  const vk::ApplicationInfo application("dllama-gpu", 0, "Kompute", 0, api_version_);
  vk::InstanceCreateInfo info(flags, &application, layers, extensions);
  if (validation) info.setPNext(&features);
  try {
    handle_ = vk::createInstance(info);
  } catch (const vk::IncompatibleDriverError&) {
    throw VulkanError("no Vulkan driver is installed");
  } catch (const vk::SystemError& error) {
    throw VulkanError(std::string("no Vulkan instance could be made: ") + error.what());
  }
  // The loader's functions look up the instance or device in their first argument, so one table serves all of them.
  std::call_once(completed, [this] {
    VULKAN_HPP_DEFAULT_DISPATCHER.init(handle_);
    install_hooks();
  });
  if (validation) listen();
}

void Instance::listen() {
  // Not through the table: an instance without the extension may have filled it.
  const auto create = reinterpret_cast<PFN_vkCreateDebugUtilsMessengerEXT>(
      VULKAN_HPP_DEFAULT_DISPATCHER.vkGetInstanceProcAddr(handle_, "vkCreateDebugUtilsMessengerEXT"));
  if (!create) return;
  VkDebugUtilsMessengerCreateInfoEXT info{};
  info.sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT;
  info.messageSeverity =
      VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT;
  info.messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT;
  info.pfnUserCallback = on_message;
  info.pUserData = this;
  create(handle_, &info, nullptr, &messenger_);
}

Instance::~Instance() {
  if (messenger_) {
    const auto destroy = reinterpret_cast<PFN_vkDestroyDebugUtilsMessengerEXT>(
        VULKAN_HPP_DEFAULT_DISPATCHER.vkGetInstanceProcAddr(handle_, "vkDestroyDebugUtilsMessengerEXT"));
    if (destroy) destroy(handle_, messenger_, nullptr);
  }
  if (handle_) handle_.destroy();
}

std::vector<vk::PhysicalDevice> Instance::physical_devices() const {
  std::vector<vk::PhysicalDevice> usable;
  for (const auto& device : handle_.enumeratePhysicalDevices()) {
    const auto queues = device.getQueueFamilyProperties();
    const bool computes = std::any_of(queues.begin(), queues.end(), [](const vk::QueueFamilyProperties& family) {
      return static_cast<bool>(family.queueFlags & vk::QueueFlagBits::eCompute);
    });
    if (computes && device.getProperties().apiVersion >= VK_API_VERSION_1_1) usable.push_back(device);
  }
  return usable;
}

std::vector<std::string> Instance::messages() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return messages_;
}

void Instance::add_message(std::string text) {
  std::lock_guard<std::mutex> lock(mutex_);
  messages_.push_back(std::move(text));
}

std::shared_ptr<Instance> shared_instance() {
  static std::mutex mutex;
  static std::shared_ptr<Instance>* instance = nullptr;  // never destroyed: drivers' threads may outlive main
  std::lock_guard<std::mutex> lock(mutex);
  if (!instance) instance = new std::shared_ptr<Instance>(std::make_shared<Instance>(false));
  return *instance;
}

}  // namespace dllama::vulkan
