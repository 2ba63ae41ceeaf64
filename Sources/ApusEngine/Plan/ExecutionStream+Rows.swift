// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusKernel
import ApusTensor

extension ExecutionStream {
  /// Brings an operand or result that may have gaps between its rows to the host, where rows follow each
  /// other, and waits for it.
  func copyRows(of operand: Problem.Operand, from address: DeviceAddress, to tensor: Tensor)
    throws(ApusError)
  {
    guard let start = tensor.mutableBytes.baseAddress, tensor.byteCount > 0 else { return }
    let rows = operand.pitch == nil ? 1 : operand.rowCount
    let width = tensor.byteCount / rows
    let step = operand.rowStride * operand.dataType.bitWidth / 8
    for row in 0..<rows {
      try copyToHost(from: address + row * step, to: start + row * width, byteCount: width)
    }
    try synchronize()
  }
}
