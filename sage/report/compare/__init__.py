"""Compare two result sets: `sage compare`."""
