"""Encodings of quantised vectors: bit packing, Elias codes and levels."""
