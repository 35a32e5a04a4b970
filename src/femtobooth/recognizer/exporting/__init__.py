"""A recognizer for other runtimes: graphs, INT8, and how far each is from the original."""
