"""What the tripwire decides by: scores of a pair of paths, their operating point, and a sequential test. NumPy only."""
