// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusKernel
import ApusTestSupport
import CMallocCounter
import Testing

@Suite struct EngineTests {
  private func input(_ shape: [Int]) throws -> Tensor {
    var generator = SeededGenerator(seed: 11)
    return try generator.tensor(.float32, shape: shape)
  }

  private func temporary(_ name: String) -> String {
    "/tmp/apus-test-\(UInt64.random(in: 0 ..< .max)).\(name)"
  }

  private func close(_ a: Tensor?, _ b: Tensor?, _ limit: Double = 1e-5) throws {
    let difference = TensorDifference(try #require(a), try #require(b))
    #expect(difference.relativeL2 <= limit, "\(difference)")
  }

  @Test func enginesAgreeWithTheReferenceAtEveryBatch() throws {
    let graph = try SmallNetworks.residual()
    let engine = try Builder().build(graph)
    let context = try engine.makeContext()
    for batch in [1, 2, 5, 1] {
      let x = try input([batch, 3, 13, 11])
      let expected = try ReferenceInterpreter.run(graph, inputs: [.tensor(x)])
      try close(try context.run(["x": x])["y"], expected[0].tensor)
    }
  }

  @Test func theFakeAsynchronousDeviceRunsTheWholePath() throws {
    let backend = FakeDeviceBackend()
    let graph = try SmallNetworks.residual()
    let engine = try Builder(backend: backend).build(graph)
    let x = try input([2, 3, 13, 11])
    let expected = try ReferenceInterpreter.run(graph, inputs: [.tensor(x)])
    let before = backend.launchCount
    try close(try engine.makeContext().run(["x": x])["y"], expected[0].tensor)
    #expect(backend.launchCount > before)
    let path = temporary("plan")
    defer { _ = try? FileIO.write(text: "", to: path) }
    try engine.save(path: path)
    let loaded = try Engine.load(path: path, backend: backend)
    try close(try loaded.makeContext().run(["x": x])["y"], expected[0].tensor)
  }

  @Test func branchesOnDataRunOnEitherDevice() throws {
    let graph = try SmallNetworks.branching()
    for backend in [FakeDeviceBackend() as any Backend, nil] {
      let context = try Builder(backend: backend).build(graph).makeContext()
      for condition in [[Int64(0), 1], [0, 0]] {
        let values: [RuntimeValue?] = [
          .tensor(try Tensor(condition, .bool, shape: [2])), .tensor(try input([3, 4])),
        ]
        let expected = try ReferenceInterpreter.run(graph, inputs: values)
        try close(try context.run(values)[0].tensor, expected[0].tensor)
      }
    }
  }

  @Test func filesGiveTheSameEngineAndDamageIsFound() throws {
    let engine = try Builder().build(try SmallNetworks.residual())
    let path = temporary("plan")
    try engine.save(path: path)
    let x = try input([1, 3, 13, 11])
    let expected = try engine.makeContext().run(["x": x])["y"]
    try close(try Engine.load(path: path).makeContext().run(["x": x])["y"], expected, 0)
    var bytes = try FileIO.read(path)
    bytes[bytes.count / 2] ^= 0x40
    try FileIO.write(bytes: bytes, to: path)
    #expect(throws: ApusError.self) { try Engine.load(path: path) }
    try FileIO.write(bytes: Array(bytes.prefix(100)), to: path)
    #expect(throws: ApusError.self) { try Engine.load(path: path) }
    try FileIO.write(text: "", to: path)
  }

  @Test func wrongInputsAreNamed() throws {
    let context = try Builder().build(try SmallNetworks.residual()).makeContext()
    func message(_ inputs: [String: Tensor]) -> String {
      do {
        _ = try context.run(inputs)
        return "accepted"
      } catch { return error.description }
    }
    #expect(message([:]).contains("'x' is missing"))
    #expect(message(["z": try input([1])]).contains("no input named 'z'"))
    #expect(message(["x": try input([1, 3, 13, 12])]).contains("[1, 3, 13, 12]"))
    let wrong = try Tensor([Int64](repeating: 0, count: 429), .int64, shape: [1, 3, 13, 11])
    #expect(message(["x": wrong]).contains("i64"))
  }

  @Test func precisionsThatAreNotThereAreRefused() throws {
    var configuration = BuilderConfiguration()
    configuration.precision = .int8
    #expect(throws: ApusError.self) {
      try Builder(configuration).build(try SmallNetworks.residual())
    }
  }

  @Test func concurrentContextsShareAnEngine() async throws {
    let engine = try Builder().build(try SmallNetworks.residual())
    let x = try input([2, 3, 13, 11])
    let expected = try engine.makeContext().run(["x": x])["y"]?.floats()
    try await withThrowingTaskGroup(of: [Float]?.self) { group in
      for _ in 0..<8 {
        group.addTask {
          let context = try engine.makeContext()
          return try await context.run(async: ["x": x])["y"]?.floats()
        }
      }
      for try await result in group { #expect(result == expected) }
    }
  }

  /// A number of threads that no other test has, so that their pool is free from the first run on.
  @Test(arguments: [1, 3]) func runningAgainAllocatesNothing(threads: Int) throws {
    var configuration = BuilderConfiguration()
    configuration.threadCount = threads
    let context = try Builder(configuration).build(try SmallNetworks.residual()).makeContext()
    try context.bindInput("x", try input([2, 3, 13, 11]))
    for _ in 0..<3 { try context.execute() }
    let before = apus_malloc_count()
    for _ in 0..<10 { try context.execute() }
    #expect(apus_malloc_count() == before)
  }

  @Test func theTimingCacheIsUsedAgain() throws {
    let path = temporary("cache")
    var configuration = BuilderConfiguration()
    configuration.timingCachePath = path
    _ = try Builder(configuration).build(try SmallNetworks.residual())
    let first = try TimingCache.load(path)
    #expect(first.count > 0)
    let tuned = try Builder(configuration).tuneAll(try SmallNetworks.residual())
    #expect(tuned.allSatisfy { $0.fromCache || $0.winner.contains("portable") })
    try FileIO.write(text: "apus timing cache 1\nrubbish\n", to: path)
    #expect(throws: ApusError.self) { try TimingCache.load(path) }
    #expect(String(decoding: try FileIO.read(path), as: UTF8.self).contains("rubbish"))
  }

  @Test func theSameTimingCacheGivesTheSameFile() throws {
    var configuration = BuilderConfiguration()
    configuration.timingCachePath = temporary("same")
    _ = try Builder(configuration).build(try SmallNetworks.residual())
    let files = try (0..<2).map { _ in
      try Builder(configuration).build(try SmallNetworks.residual()).serialized()
    }
    #expect(files[0] == files[1])
  }

  @Test func aLoadedEngineExplainsItsChoices() throws {
    let built = try Builder().build(try SmallNetworks.residual())
    let path = temporary("plan")
    try built.save(path: path)
    let loaded = try Engine.load(path: path)
    #expect(loaded.report.text == built.report.text)
    let kernels = try loaded.kernels()
    #expect(!kernels.isEmpty)
    for kernel in kernels {
      let tuned = try #require(kernel.tuned, "\(kernel.name)")
      #expect(tuned.winner == kernel.tactic)
      #expect(!tuned.refusals.isEmpty)
    }
    #expect(kernels.contains { ($0.tuned?.measurements.count ?? 0) > 1 })
  }
}
