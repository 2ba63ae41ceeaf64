// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0
#ifndef CAPUS_CPU_H
#define CAPUS_CPU_H
#include <stddef.h>
#include <stdint.h>

/// Executes CPUID on x86-64 (out = eax, ebx, ecx, edx); all zero on other machines.
void apus_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]);

/// Reads extended control register 0 on x86-64 (which register state the system saves); 0 elsewhere
/// and where the system has not enabled it.
uint64_t apus_xgetbv0(void);

/// Asks the system to let this process use the tile registers of AMX; 1 if it may now, else 0.
int apus_request_tiles(void);

/// Hints to the processor that the caller spins.
void apus_cpu_relax(void);

/// Writes the cache lines of memory back and drops them from every cache, where the machine can.
void apus_evict(const void *start, size_t count);

/// The number of processors this process may use, at least 1.
int apus_available_processors(void);

/// The processor that the calling thread runs on; -1 where that cannot be said.
int apus_current_processor(void);

/// Moves the calling thread off a processor, to any other that it may use; 1 if that was done. It may come back:
/// the processors it may use are the same afterwards.
int apus_leave_processor(int processor);
#endif
