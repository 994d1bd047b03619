"""Conformance tests of reducers, for `sage conform` and the test suite."""
