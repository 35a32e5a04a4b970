"""A recognizer in memory, and what belongs to its weights: preprocessing, labels, rejection."""
