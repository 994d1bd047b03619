"""How ranks speak: the wire, its ledger, its watch, and where ranks meet."""
