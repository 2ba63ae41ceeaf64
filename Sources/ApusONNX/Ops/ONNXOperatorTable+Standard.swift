// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

extension ONNXOperatorTable {
  /// Every ONNX operator that Apus imports.
  public static let standard: ONNXOperatorTable = {
    var table = ONNXOperatorTable()
    return table
  }()
}
