"""Published tables, and our runs next to them: `sage published`."""
