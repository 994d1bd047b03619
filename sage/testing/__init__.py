"""Checks that a reducer keeps its contract: `sage conform` and the tests use them."""
