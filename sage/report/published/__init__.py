"""Published tables, and our runs beside them: `sage published`."""
