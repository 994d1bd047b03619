"""How a vector becomes fewer bits, and back: what quantisers and low-rank reducers share."""
