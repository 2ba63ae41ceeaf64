// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

@_exported import ApusBase
@_exported import ApusCalibration
@_exported import ApusEngine
@_exported import ApusGraph
@_exported import ApusImages
@_exported import ApusONNX
@_exported import ApusOps
@_exported import ApusTensor

/// Facts about this build.
public enum Apus {
  /// The version, the same in the library, the command, the C interface and the Python package.
  public static let version = "0.1.0"
}
