// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

extension ONNXOperatorTable {
  /// Operators on texts.
  mutating func addText() {
    op("StringConcat", since: 20) { _ in StringConcat() }
    op("StringNormalizer", since: 10) { (node) throws(ApusError) in
      let change = try node.attributes.string("case_change_action", "NONE")
      guard let caseChange = StringNormalizer.CaseChange(rawValue: change.lowercased()) else {
        throw ApusError(
          .invalidAttribute, "'case_change_action' is '\(change)', not LOWER, UPPER or NONE")
      }
      node.attributes.ignore("locale")
      return StringNormalizer(
        caseChange: caseChange,
        isCaseSensitive: try node.attributes.flag("is_case_sensitive", false),
        stopwords: try node.attributes.strings("stopwords", []))
    }
    op("StringSplit", since: 20) { (node) throws(ApusError) in
      StringSplit(
        delimiter: try node.attributes.string("delimiter", ""),
        maximumSplits: try node.attributes.optionalInt("maxsplit"))
    }
    op("RegexFullMatch", since: 20) { (node) throws(ApusError) in
      try RegexFullMatch(pattern: try node.attributes.string("pattern", ""))
    }
    op("TfIdfVectorizer", since: 9) { (node) throws(ApusError) in
      try node.tfIdfVectorizer()
    }
  }
}

extension NodeImport {
  fileprivate func tfIdfVectorizer() throws(ApusError) -> TfIdfVectorizer {
    let word = try attributes.string("mode")
    guard let mode = TfIdfVectorizer.Mode(rawValue: word) else {
      throw ApusError(.invalidAttribute, "'mode' is '\(word)', not TF, IDF or TFIDF")
    }
    let texts = try attributes.strings("pool_strings", [])
    let numbers = try attributes.ints("pool_int64s", [])
    return TfIdfVectorizer(
      mode: mode, minimumLength: try attributes.int("min_gram_length"),
      maximumLength: try attributes.int("max_gram_length"),
      maximumSkip: try attributes.int("max_skip_count"),
      counts: try attributes.ints("ngram_counts"), indexes: try attributes.ints("ngram_indexes"),
      pool: texts.isEmpty ? numbers.map(String.init) : texts,
      weights: try attributes.floats("weights", []))
  }
}
