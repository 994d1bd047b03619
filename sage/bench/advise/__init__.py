"""`sage advise`: measure, predict, verify by short interleaved runs, and recommend one set-up."""
