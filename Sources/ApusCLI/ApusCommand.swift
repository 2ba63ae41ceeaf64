// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ArgumentParser

/// The command `apus`.
@main
struct ApusCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "apus",
    abstract: "Optimises trained models and runs them as fast as the machine allows.",
    version: Apus.version,
    subcommands: [
      BuildCommand.self, RunCommand.self, BenchCommand.self, CompareCommand.self,
      BlameCommand.self,
      InspectCommand.self, TacticsCommand.self, DevicesCommand.self, OpsCommand.self,
      KnobsCommand.self,
    ])

  /// Runs the command; errors of Apus are printed as they are and end with exit code 1.
  static func main() {
    do {
      var command = try parseAsRoot()
      try command.run()
    } catch let error as ApusError {
      Terminal.error(error.description)
      Self.exit(withError: ExitCode(1))
    } catch {
      Self.exit(withError: error)
    }
  }
}
