// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// The unambiguous text form used in files: `{2*"N" + 1}`; every symbol is quoted, because symbol
/// names may hold any characters.
extension Dim {
  package var symbolic: String {
    let parts = textTerms.map { term in
      ([String(term.coefficient)] + term.symbols.map(Self.quoted)).joined(separator: "*")
    }
    return "{\(parts.joined(separator: " + "))}"
  }

  private static func quoted(_ text: String) -> String {
    var result = "\""
    for scalar in text.unicodeScalars {
      if scalar == "\"" || scalar == "\\" { result += "\\" }
      result.unicodeScalars.append(scalar)
    }
    return result + "\""
  }
}
