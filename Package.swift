// swift-tools-version: 6.1
// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import PackageDescription

/// Swift 6 language mode for every target, with the upcoming features the code base is written for.
let settings: [SwiftSetting] = [
  .swiftLanguageMode(.v6),
  .enableUpcomingFeature("ExistentialAny"),
]

// Every target names all modules it imports, not only the nearest: the build then knows what to compile
// again when a lower one changes.

/// The modules that describe data and graphs.
let base: [Target.Dependency] = ["ApusBase", "ApusTensor", "ApusGraph"]
/// `base` and the operators.
let core: [Target.Dependency] = base + ["ApusOps"]
/// What users of the library import, with what it re-exports.
let library: [Target.Dependency] =
  core + ["ApusCalibration", "ApusImages", "ApusEngine", "ApusONNX", "Apus"]

/// The library targets in dependency order; ARCHITECTURE.md has the same table with a sentence each.
let package = Package(
  name: "Apus",
  platforms: [.macOS(.v15)],
  products: [
    .library(name: "Apus", targets: ["Apus"]),
    .library(name: "ApusC", type: .dynamic, targets: ["ApusC"]),
    .executable(name: "apus", targets: ["ApusCLI"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/apple/swift-protobuf", from: "1.39.0", traits: []),
  ],
  targets: [
    .target(name: "CApusShims"),
    .target(name: "ApusBase", dependencies: ["CApusShims"], swiftSettings: settings),
    .target(name: "ApusTensor", dependencies: ["ApusBase"], swiftSettings: settings),
    .target(name: "ApusGraph", dependencies: ["ApusBase", "ApusTensor"], swiftSettings: settings),
    .target(name: "ApusOps", dependencies: base, swiftSettings: settings),
    .target(
      name: "ApusProto",
      dependencies: [.product(name: "SwiftProtobuf", package: "swift-protobuf")],
      exclude: ["onnx.proto"],
      swiftSettings: settings),
    .target(name: "ApusONNX", dependencies: core + ["ApusProto"], swiftSettings: settings),
    .target(
      name: "ApusCalibration", dependencies: ["ApusBase", "ApusTensor"], swiftSettings: settings),
    .target(name: "ApusImages", dependencies: ["ApusBase", "ApusTensor"], swiftSettings: settings),
    .target(name: "ApusOptimize", dependencies: core + ["ApusCalibration"], swiftSettings: settings),
    .target(name: "ApusKernel", dependencies: core, swiftSettings: settings),
    .target(name: "ApusX86", dependencies: ["ApusBase"], swiftSettings: settings),
    .target(
      name: "ApusCPU", dependencies: core + ["CApusShims", "ApusKernel", "ApusX86"], swiftSettings: settings),
    .target(
      name: "ApusEngine",
      dependencies: core + [
        "ApusCalibration", "ApusImages", "ApusOptimize", "ApusKernel", "ApusCPU",
      ],
      swiftSettings: settings),
    .target(
      name: "Apus", dependencies: core + ["ApusCalibration", "ApusImages", "ApusEngine", "ApusONNX"],
      swiftSettings: settings),
    .systemLibrary(name: "CApus", path: "include"),
    .target(name: "ApusC", dependencies: library + ["CApus"], swiftSettings: settings),
    .executableTarget(
      name: "ApusCLI",
      dependencies: library + [
        .product(name: "ArgumentParser", package: "swift-argument-parser")
      ],
      swiftSettings: settings),
    .target(
      name: "ApusTestSupport", dependencies: library + ["ApusKernel"], path: "Tests/ApusTestSupport",
      swiftSettings: settings),
    .testTarget(
      name: "ApusX86Tests", dependencies: ["ApusBase", "ApusX86"], swiftSettings: settings),
    .testTarget(
      name: "ApusCPUTests",
      dependencies: library + ["ApusKernel", "ApusX86", "ApusCPU", "ApusTestSupport"],
      swiftSettings: settings),
    .testTarget(
      name: "ApusBaseTests", dependencies: ["ApusBase", "ApusTensor"], swiftSettings: settings),
    .testTarget(
      name: "ApusCalibrationTests", dependencies: ["ApusBase", "ApusTensor", "ApusCalibration"],
      swiftSettings: settings),
    .testTarget(
      name: "ApusGraphTests", dependencies: library + ["ApusTestSupport"],
      swiftSettings: settings),
    .testTarget(
      name: "ApusOpsTests", dependencies: library + ["ApusTestSupport"], swiftSettings: settings),
    .testTarget(
      name: "ApusONNXTests", dependencies: library + ["ApusProto", "ApusTestSupport"],
      swiftSettings: settings),
    .testTarget(
      name: "ApusOptimizeTests", dependencies: library + ["ApusOptimize", "ApusTestSupport"],
      swiftSettings: settings),
    .target(name: "CMallocCounter", path: "Tests/CMallocCounter"),
    .testTarget(
      name: "ApusEngineTests",
      dependencies: library + [
        "ApusOptimize", "ApusKernel", "ApusCPU", "ApusTestSupport", "CMallocCounter",
      ],
      swiftSettings: settings),
    .testTarget(
      name: "ModelTests", dependencies: library + ["ApusTestSupport"], swiftSettings: settings),
  ]
)
