#include "cpu_features.hpp"

#if defined(__x86_64__) || defined(_M_X64)
#ifdef _MSC_VER
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_M_ARM64)
#include <windows.h>
#endif

namespace dllama {

namespace {

struct Features {
  bool avx2 = false, fma = false, f16c = false, avxvnni = false, avx512 = false, avx512vnni = false;
  bool neon = false, dotprod = false, i8mm = false;
};

#if defined(__x86_64__) || defined(_M_X64)

struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
#ifdef _MSC_VER
  int values[4];
  __cpuidex(values, static_cast<int>(leaf), static_cast<int>(subleaf));
  r = {static_cast<unsigned>(values[0]), static_cast<unsigned>(values[1]), static_cast<unsigned>(values[2]),
       static_cast<unsigned>(values[3])};
#else
  __cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
#endif
  return r;
}

// Register state that the operating system saves (XCR0).
unsigned long long saved_state() {
#ifdef _MSC_VER
  return _xgetbv(0);
#else
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<unsigned long long>(high) << 32 | low;
#endif
}

Features detect() {
  Features f;
  const unsigned highest = cpuid(0, 0).eax;
  const Registers one = cpuid(1, 0);
  const bool os_saves = one.ecx >> 27 & 1;
  if (highest < 7 || !os_saves) return f;
  const unsigned long long state = saved_state();
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xE6) == 0xE6;
  const Registers seven = cpuid(7, 0);
  f.fma = ymm && (one.ecx >> 12 & 1);
  f.f16c = ymm && (one.ecx >> 29 & 1);
  f.avx2 = ymm && (seven.ebx >> 5 & 1);
  const unsigned wanted = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // AVX-512 F, DQ, BW, VL
  f.avx512 = zmm && (seven.ebx & wanted) == wanted;
  f.avx512vnni = zmm && (seven.ecx >> 11 & 1);
  if (seven.eax >= 1) f.avxvnni = ymm && (cpuid(7, 1).eax >> 4 & 1);
  return f;
}

#elif defined(__aarch64__) && defined(__linux__)

Features detect() {
  Features f;
  f.neon = true;
  f.dotprod = getauxval(AT_HWCAP) >> 20 & 1;   // HWCAP_ASIMDDP
  f.i8mm = getauxval(AT_HWCAP2) >> 13 & 1;     // HWCAP2_I8MM
  return f;
}

#elif defined(__aarch64__) && defined(__APPLE__)

bool has(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}

Features detect() {
  Features f;
  f.neon = true;
  f.dotprod = has("hw.optional.arm.FEAT_DotProd");
  f.i8mm = has("hw.optional.arm.FEAT_I8MM");
  return f;
}

#elif defined(_M_ARM64)

Features detect() {
  Features f;
  f.neon = true;
  f.dotprod = IsProcessorFeaturePresent(43) != 0;  // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
  return f;
}

#else

Features detect() { return {}; }

#endif

}  // namespace

std::vector<const KernelTable*> usable_kernels() {
  const Features f = detect();
  (void)f;
  std::vector<const KernelTable*> tables;
#ifdef DLLAMA_HAVE_AVX512
  if (f.avx512 && f.avx512vnni && f.avx2 && f.fma && f.f16c) tables.push_back(kernels_avx512());
#endif
#ifdef DLLAMA_HAVE_AVXVNNI
  if (f.avxvnni && f.avx2 && f.fma && f.f16c) tables.push_back(kernels_avxvnni());
#endif
#ifdef DLLAMA_HAVE_AVX2
  if (f.avx2 && f.fma && f.f16c) tables.push_back(kernels_avx2());
#endif
#ifdef DLLAMA_HAVE_I8MM
  if (f.i8mm && f.dotprod) tables.push_back(kernels_i8mm());
#endif
#ifdef DLLAMA_HAVE_DOTPROD
  if (f.dotprod) tables.push_back(kernels_dotprod());
#endif
#ifdef DLLAMA_HAVE_NEON
  if (f.neon) tables.push_back(kernels_neon());
#endif
  tables.push_back(kernels_plain());
  return tables;
}

std::vector<std::string> cpu_features() {
  const Features f = detect();
  std::vector<std::string> names;
  const auto note = [&](bool present, const char* name) {
    if (present) names.emplace_back(name);
  };
  note(f.avx2, "avx2");
  note(f.fma, "fma");
  note(f.f16c, "f16c");
  note(f.avxvnni, "avx-vnni");
  note(f.avx512, "avx-512");
  note(f.avx512vnni, "avx-512-vnni");
  note(f.neon, "neon");
  note(f.dotprod, "dotprod");
  note(f.i8mm, "i8mm");
  return names;
}

}  // namespace dllama
