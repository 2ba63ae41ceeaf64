// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

/// The folder of real models and data that may lie beside the project.
public enum SharedFolder {
  /// Its path, when it is there: beside the package, or where `APUS_SHARED` says.
  public static let path: String? = {
    let file = #filePath
    let parts = file.split(separator: "/", omittingEmptySubsequences: false)
    // .../<project>/Tests/ApusTestSupport/SharedFolder.swift
    let root = parts.dropLast(3).joined(separator: "/")
    let knob = Knob("APUS_SHARED", default: "", "folder of models and data for tests").text
    let candidates = [knob, "\(root)/../shared"].filter { !$0.isEmpty }
    return candidates.first { FileIO.exists("\($0)/models") }
  }()

  /// Whether it is there; prints why tests are skipped when not.
  public static let isPresent: Bool = {
    if path == nil { print("skipping tests on real models: no folder 'shared' beside the project") }
    return path != nil
  }()
}
