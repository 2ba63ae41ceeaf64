// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0
#if defined(__linux__)
#define _GNU_SOURCE
#include <sched.h>
#include <sys/syscall.h>
#endif
#include <unistd.h>
#include "apus_cpu.h"

int apus_available_processors(void) {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    int count = CPU_COUNT(&set);
    if (count > 0) return count;
  }
#endif
  long online = sysconf(_SC_NPROCESSORS_ONLN);
  return online > 0 ? (int)online : 1;
}

int apus_current_processor(void) {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

int apus_leave_processor(int processor) {
#if defined(__linux__)
  cpu_set_t all, others;
  if (processor < 0 || processor >= CPU_SETSIZE) return 0;
  if (sched_getaffinity(0, sizeof all, &all) != 0) return 0;
  others = all;
  CPU_CLR(processor, &others);
  if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others) != 0) return 0;
  sched_setaffinity(0, sizeof all, &all);
  return 1;
#else
  (void)processor;
  return 0;
#endif
}

int apus_request_tiles(void) {
#if defined(__linux__) && defined(__x86_64__) && defined(SYS_arch_prctl)
  // ARCH_REQ_XCOMP_PERM for state component 18, the data of tiles; older systems do not know it and fail.
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return 0;
#endif
}

#if defined(__x86_64__)
#include <cpuid.h>

void apus_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]) {
  __cpuid_count(leaf, subleaf, out[0], out[1], out[2], out[3]);
}

uint64_t apus_xgetbv0(void) {
  uint32_t regs[4];
  apus_cpuid(1, 0, regs);
  if (!(regs[2] & (1u << 27))) return 0;
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return ((uint64_t)high << 32) | low;
}

void apus_cpu_relax(void) { __builtin_ia32_pause(); }

__attribute__((target("clflushopt"))) static void flush_optimized(const char *line, const char *end) {
  for (; line < end; line += 64) __builtin_ia32_clflushopt(line);
  __builtin_ia32_sfence();
}

void apus_evict(const void *start, size_t count) {
  const char *end = (const char *)start + count;
  const char *line = (const char *)((uintptr_t)start & ~(uintptr_t)63);
  uint32_t regs[4];
  apus_cpuid(7, 0, regs);
  if (regs[1] & (1u << 23)) {
    flush_optimized(line, end);
  } else {
    for (; line < end; line += 64) __builtin_ia32_clflush(line);
  }
}
#else
void apus_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]) {
  (void)leaf;
  (void)subleaf;
  out[0] = out[1] = out[2] = out[3] = 0;
}

uint64_t apus_xgetbv0(void) { return 0; }

void apus_cpu_relax(void) {}

void apus_evict(const void *start, size_t count) {
  (void)start;
  (void)count;
}
#endif
