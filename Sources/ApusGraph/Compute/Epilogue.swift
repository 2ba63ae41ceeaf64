// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// What an anchor operator does to each result element before storing it.
///
/// Operand 0 of the expression is the anchor's result element, operands 1... are the elements of
/// the extra operands, broadcast to the result's shape.
public struct Epilogue: Hashable, Sendable {
  /// The expression.
  public var expression: ScalarExpr
  /// The number of extra operands.
  public var extraCount: Int

  /// Creates an epilogue.
  public init(_ expression: ScalarExpr, extraCount: Int) {
    self.expression = expression
    self.extraCount = extraCount
  }

  /// The epilogue that changes nothing.
  public static let identity = Epilogue(.input(0), extraCount: 0)

  /// Whether it changes nothing.
  public var isIdentity: Bool { expression == .input(0) }
}
