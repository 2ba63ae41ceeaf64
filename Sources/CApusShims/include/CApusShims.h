// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0
#ifndef CAPUS_SHIMS_H
#define CAPUS_SHIMS_H
#include "apus_cpu.h"
#endif
