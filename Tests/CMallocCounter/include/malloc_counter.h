// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

#ifndef APUS_MALLOC_COUNTER_H
#define APUS_MALLOC_COUNTER_H

/// The number of heap allocations of the calling thread so far; -1 where they cannot be counted.
long apus_malloc_count(void);
#endif
