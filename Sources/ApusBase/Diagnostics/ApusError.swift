// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// The error that every throwing function of Apus throws.
///
/// It is a structure with an open set of codes, so that codes can be added without breaking callers.
/// `description` renders it for people: where, what, and on a second line what to do about it.
public struct ApusError: Error, Sendable, CustomStringConvertible {
  /// What kind of failure this is. The set is open; compare with `==`.
  public struct Code: Hashable, Sendable, CustomStringConvertible {
    /// The stable name, for example `malformed-file`.
    public let name: String

    /// Creates a code; `name` is lower case words joined by hyphens.
    public init(_ name: String) { self.name = name }

    public var description: String { name }

    /// A file could not be opened, read or written.
    public static let fileAccess = Code("file-access")
    /// The bytes do not follow the file format they claim to be in.
    public static let malformedFile = Code("malformed-file")
    /// The file is of a version, type or device this build cannot use.
    public static let incompatible = Code("incompatible")
    /// One or more operators have no implementation.
    public static let unsupportedOperator = Code("unsupported-operator")
    /// An attribute is missing, of the wrong type or out of range.
    public static let invalidAttribute = Code("invalid-attribute")
    /// The graph breaks a structural rule.
    public static let invalidGraph = Code("invalid-graph")
    /// Types or shapes contradict each other.
    public static let typeMismatch = Code("type-mismatch")
    /// An argument of the caller is unusable.
    public static let invalidArgument = Code("invalid-argument")
    /// The request is valid but this build cannot serve it yet.
    public static let notYetSupported = Code("not-yet-supported")
    /// Memory or another limit is exhausted.
    public static let resourceLimit = Code("resource-limit")
    /// A device or kernel failed while running.
    public static let execution = Code("execution")
    /// The caller cancelled the work.
    public static let cancelled = Code("cancelled")
    /// An invariant of Apus itself is broken; please report it.
    public static let internalError = Code("internal")
  }

  /// The kind of failure.
  public var code: Code
  /// What happened, with the values seen and wanted.
  public var message: String
  /// What the reader can do about it.
  public var hint: String?
  /// Where in which file or graph it happened.
  public var location: GraphLocation

  /// Creates an error.
  public init(
    _ code: Code, _ message: String, hint: String? = nil, location: GraphLocation = GraphLocation()
  ) {
    self.code = code
    self.message = message
    self.hint = hint
    self.location = location
  }

  /// The same error with the parts of `outer` that its own location leaves open.
  public func at(_ outer: GraphLocation) -> ApusError {
    var copy = self
    copy.location = location.completed(by: outer)
    return copy
  }

  public var description: String {
    let place = location.description
    let head = place.isEmpty ? "" : place + ": "
    let tail = hint.map { "\nhint: \($0)" } ?? ""
    return "\(head)error [\(code)]: \(message)\(tail)"
  }
}
