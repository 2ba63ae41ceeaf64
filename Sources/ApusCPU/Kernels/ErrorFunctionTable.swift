// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// The error function as sixteen polynomials, one for each quarter that |x| is nearest to: a register of
/// 512 bits holds one coefficient of all of them, and a permutation by the quarter picks each lane's.
/// Half the instructions of one polynomial for small and another with an exponential for large arguments.
///
/// Printed by Utilities/fit-polynomials.py.
enum ErrorFunctionTable {
  /// From here on the function rounds to one; the last polynomial gives that at this place.
  static let end: Float = 3.8749998
  /// Width of an interval.
  static let step = 0.25
  /// Coefficients, highest power first, of the polynomials of |x| less the middle of its interval.
  static let coefficients: [[Float]] = [
    [
      1.110889244e-01, 8.088639353e-02, 8.264059097e-03, -5.221181688e-02,
      -6.903954661e-02, -4.699782907e-02, -1.490451305e-02, 6.512191767e-03,
      1.302487232e-02, 1.064607330e-02, 6.127858721e-03, 2.771220714e-03,
      1.025594338e-03, 3.178100033e-04, 8.349291470e-05, 6.741150548e-04,
    ],
    [
      2.576163480e-04, 1.260767589e-01, 1.821210915e-01, 1.506566823e-01,
      6.885950790e-02, -5.293683895e-03, -4.362365385e-02, -4.741437014e-02,
      -3.372541702e-02, -1.855415333e-02, -9.602652572e-03, -2.999215584e-03,
      -1.794581147e-03, 6.821972373e-05, 8.243073728e-04, -1.902945058e-04,
    ],
    [
      -3.761395122e-01, -3.091917561e-01, -1.464787065e-01, 2.677714434e-02,
      1.383706032e-01, 1.675338168e-01, 1.387514460e-01, 9.015756086e-02,
      4.822314409e-02, 2.172457005e-02, 8.350056712e-03, 2.760305399e-03,
      7.890546900e-04, 1.957886264e-04, 4.228827055e-05, 7.967612879e-06,
    ],
    [
      2.233288544e-07, -2.649987772e-01, -4.393883317e-01, -4.822044299e-01,
      -4.151012787e-01, -2.956597767e-01, -1.784059926e-01, -9.236482738e-02,
      -4.134513699e-02, -1.607922691e-02, -5.431023713e-03, -1.616729827e-03,
      -4.061763924e-04, -1.004932180e-04, -3.290610278e-05, -5.429767756e-07,
    ],
    [
      1.128379166e+00, 1.060014214e+00, 8.787826198e-01, 6.429310866e-01,
      4.151074908e-01, 2.365211255e-01, 1.189302913e-01, 5.277499673e-02,
      2.066698581e-02, 7.142319155e-03, 2.178284168e-03, 5.862772521e-04,
      1.392530485e-04, 2.918902561e-05, 5.399426895e-06, 8.814321749e-07,
    ],
    [
      0.000000000e+00, 2.763263881e-01, 5.204998851e-01, 7.111556530e-01,
      8.427007794e-01, 9.229001403e-01, 9.661051631e-01, 9.866716862e-01,
      9.953222871e-01, 9.985373020e-01, 9.995930195e-01, 9.998993874e-01,
      9.999778867e-01, 9.999957085e-01, 9.999992847e-01, 9.999998808e-01,
    ],
  ]
}
