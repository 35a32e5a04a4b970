"""Small shared pieces. This room knows nothing of the generator, the recognizer or training."""
