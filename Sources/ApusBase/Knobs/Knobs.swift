// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// Every knob of Apus.
public enum Knobs {
  /// How much the build and the run print to standard error.
  public static let debug = Knob(
    "APUS_DEBUG", default: "0",
    "1 phases, 2 plans for new shapes, 3 rewrites and refusals, 4 timed tactics; on standard error")
  /// Where graph dumps go.
  public static let dump = Knob(
    "APUS_DUMP", default: "", "folder for the graph after every pass that changed it")
  /// The phase after which the build stops.
  public static let stopAfter = Knob(
    "APUS_STOP_AFTER", default: "", "phase after which the build stops, for bisection")
  /// Largest number of rewrites, for bisection.
  public static let rewriteLimit = Knob(
    "APUS_REWRITE_LIMIT", default: "", "stop rewriting after this many rewrites, for bisection")
  /// Rules that must not run.
  public static let disableRules = Knob(
    "APUS_DISABLE_RULES", default: "", "comma-separated names of passes and rules to leave out")
  /// Verification level.
  public static let verify = Knob(
    "APUS_VERIFY", default: "0",
    "2 compares the graph before and after every pass in the reference interpreter; its structure is always verified")
  /// Tactic sources in force.
  public static let tacticSources = Knob(
    "APUS_TACTIC_SOURCES", default: "", "comma-separated tactic sources to use (jit, native, portable)")
  /// Pinned tactics.
  public static let forceTactic = Knob(
    "APUS_FORCE_TACTIC", default: "", "use only tactics whose name contains this text")
  /// NaN and infinity scan.
  public static let checkNumerics = Knob(
    "APUS_CHECK_NUMERICS", default: "0", "scan every kernel's output for NaN and infinity")
  /// Instruction set to use on the CPU.
  public static let cpuISA = Knob(
    "APUS_CPU_ISA", default: "", "instruction set on the CPU: avx512, avx2-vnni, avx2 or portable")
  /// Profiler symbols for generated code.
  public static let perfMap = Knob(
    "APUS_PERF_MAP", default: "0", "write /tmp/perf-PID.map so that profilers name generated code")
  /// Dump of generated code.
  public static let jitDump = Knob(
    "APUS_JIT_DUMP", default: "", "folder for the bytes of every generated kernel")

  /// All knobs, in the order they are listed to users.
  public static let all: [Knob] = [
    debug, dump, stopAfter, rewriteLimit, disableRules, verify, tacticSources, forceTactic,
    checkNumerics, cpuISA, perfMap, jitDump,
  ]
}
