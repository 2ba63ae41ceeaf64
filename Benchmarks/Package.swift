// swift-tools-version: 6.1
// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import PackageDescription

// A package of its own, so that users of Apus do not build its benchmarks.
let package = Package(
  name: "Benchmarks",
  platforms: [.macOS(.v15)],
  dependencies: [.package(name: "Apus", path: "..")],
  targets: [
    .executableTarget(name: "kernels", dependencies: [.product(name: "Apus", package: "Apus")])
  ]
)
