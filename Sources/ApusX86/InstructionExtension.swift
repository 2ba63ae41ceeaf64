// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// Instructions that not every CPU with AVX2 has.
package enum InstructionExtension: Sendable {
  /// Everything in the EVEX form, and mask registers.
  case avx512
  /// Products of bytes in the VEX form.
  case avxVNNI

  /// Those that assemblers made in this task refuse. A machine that has them all would run code for a smaller one
  /// without complaint, so tests say here what the smaller one lacks.
  @TaskLocal package static var refused: Set<InstructionExtension> = []
}
