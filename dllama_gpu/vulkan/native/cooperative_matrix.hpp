// VK_KHR_cooperative_matrix in our own words: the headers of Debian 12 and Ubuntu 22.04 are older than it, the drivers
// that people run with them are not. Values and layouts are those of the Vulkan specification.
#pragma once

#include <cstdint>

#include <vulkan/vulkan.hpp>

namespace dllama::vulkan {

constexpr const char* kCooperativeMatrix = "VK_KHR_cooperative_matrix";
constexpr const char* kCooperativeMatrixQuery = "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR";

struct CooperativeMatrixFeatures {
  VkStructureType sType = static_cast<VkStructureType>(1000506000);
  void* pNext = nullptr;
  VkBool32 cooperativeMatrix = VK_FALSE;
  VkBool32 cooperativeMatrixRobustBufferAccess = VK_FALSE;
};

// One kind of product: result (M, N) = A (M, K) · B (K, N) + C.
struct CooperativeMatrixProperties {
  static constexpr uint32_t kSubgroup = 3;  // a `scope`

  VkStructureType sType = static_cast<VkStructureType>(1000506001);
  void* pNext = nullptr;
  uint32_t MSize = 0, NSize = 0, KSize = 0;
  uint32_t AType = 0, BType = 0, CType = 0, ResultType = 0;  // VkComponentTypeKHR
  VkBool32 saturatingAccumulation = VK_FALSE;
  uint32_t scope = 0;  // VkScopeKHR
};

using CooperativeMatrixQuery = VkResult(VKAPI_PTR*)(VkPhysicalDevice, uint32_t* count, CooperativeMatrixProperties*);

// A VkComponentTypeKHR as this program calls it; "other" for those that it has no use for.
inline const char* component_type(uint32_t type) {
  switch (type) {
    case 0:
      return "f16";
    case 1:
      return "f32";
    case 3:
      return "s8";
    case 5:
      return "s32";
    case 7:
      return "u8";
    case 9:
      return "u32";
    default:
      return "other";
  }
}

#ifdef VK_KHR_cooperative_matrix
static_assert(sizeof(CooperativeMatrixFeatures) == sizeof(VkPhysicalDeviceCooperativeMatrixFeaturesKHR));
static_assert(sizeof(CooperativeMatrixProperties) == sizeof(VkCooperativeMatrixPropertiesKHR));
static_assert(VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR == 1000506000);
static_assert(VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR == 1000506001);
static_assert(VK_SCOPE_SUBGROUP_KHR == CooperativeMatrixProperties::kSubgroup);
static_assert(VK_COMPONENT_TYPE_FLOAT16_KHR == 0 && VK_COMPONENT_TYPE_UINT32_KHR == 9);
#endif

}  // namespace dllama::vulkan
