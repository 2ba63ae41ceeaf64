// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0
