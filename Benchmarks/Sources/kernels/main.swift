// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus

// kernels [--threads N] [--only TEXT]: the time of each kernel as JSON on standard output.

var threads = 1
var only = ""
var arguments = CommandLine.arguments.dropFirst()
while let option = arguments.popFirst() {
  switch (option, arguments.popFirst()) {
  case ("--threads", let value?): threads = Int(value) ?? 1
  case ("--only", let value?): only = value
  default: fatal("usage: kernels [--threads N] [--only TEXT]")
  }
}

func fatal(_ text: String) -> Never {
  Log.warning(text)
  exitProcess(1)
}

do {
  var rows: [Measurement] = []
  // A kernel is measured with its twin.
  let twins = Kernel.all.filter { $0.name.contains(only) }.compactMap(\.twin)
  for kernel in Kernel.all where only.isEmpty || kernel.name.contains(only) || twins.contains(kernel.name) {
    for precision in kernel.precisions {
      rows.append(try Measurement(of: kernel, precision, threads: threads))
    }
  }
  let roof = try Devices.roofline(of: "cpu", threadCount: threads)
  let json = Measurement.json(rows) { precision in
    roof?.operations[precision == .bf16 ? .bfloat16 : .float32] ?? .infinity
  }
  print(JSON.array(json).text())
} catch {
  fatal("\(error)")
}
