// swift-tools-version: 6.1
// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import PackageDescription

/// Swift 6 language mode for every target, with the upcoming features the code base is written for.
let settings: [SwiftSetting] = [
  .swiftLanguageMode(.v6),
  .enableUpcomingFeature("ExistentialAny"),
]

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
    .target(name: "ApusGraph", dependencies: ["ApusTensor"], swiftSettings: settings),
    .target(name: "ApusOps", dependencies: ["ApusGraph"], swiftSettings: settings),
    .target(
      name: "ApusProto",
      dependencies: [.product(name: "SwiftProtobuf", package: "swift-protobuf")],
      exclude: ["onnx.proto"],
      swiftSettings: settings),
    .target(name: "ApusONNX", dependencies: ["ApusOps", "ApusProto"], swiftSettings: settings),
    .target(name: "ApusOptimize", dependencies: ["ApusOps"], swiftSettings: settings),
    .target(name: "ApusKernel", dependencies: ["ApusOps"], swiftSettings: settings),
    .target(name: "ApusX86", dependencies: ["ApusBase"], swiftSettings: settings),
    .target(name: "ApusCPU", dependencies: ["ApusKernel", "ApusX86"], swiftSettings: settings),
    .target(
      name: "ApusEngine", dependencies: ["ApusOptimize", "ApusKernel", "ApusCPU"],
      swiftSettings: settings),
    .target(name: "Apus", dependencies: ["ApusEngine", "ApusONNX"], swiftSettings: settings),
    .systemLibrary(name: "CApus", path: "include"),
    .target(name: "ApusC", dependencies: ["Apus", "CApus"], swiftSettings: settings),
    .executableTarget(
      name: "ApusCLI",
      dependencies: [
        "Apus", .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ],
      swiftSettings: settings),
    .target(
      name: "ApusTestSupport", dependencies: ["Apus"], path: "Tests/ApusTestSupport",
      swiftSettings: settings),
    .testTarget(name: "ApusX86Tests", dependencies: ["ApusX86"], swiftSettings: settings),
    .testTarget(name: "ApusCPUTests", dependencies: ["ApusCPU", "ApusTestSupport"], swiftSettings: settings),
    .testTarget(name: "ApusBaseTests", dependencies: ["ApusBase", "ApusTensor"], swiftSettings: settings),
    .testTarget(name: "ApusGraphTests", dependencies: ["ApusGraph", "ApusTestSupport"], swiftSettings: settings),
    .testTarget(name: "ApusOpsTests", dependencies: ["ApusOps", "ApusTestSupport"], swiftSettings: settings),
    .testTarget(
      name: "ApusONNXTests", dependencies: ["Apus", "ApusONNX", "ApusProto", "ApusTestSupport"], swiftSettings: settings),
    .testTarget(
      name: "ApusOptimizeTests", dependencies: ["ApusOptimize", "ApusTestSupport"],
      swiftSettings: settings),
    .testTarget(name: "ApusEngineTests", dependencies: ["Apus", "ApusTestSupport"], swiftSettings: settings),
    .testTarget(name: "ModelTests", dependencies: ["Apus", "ApusTestSupport"], swiftSettings: settings),
  ]
)
