"""Work in parts: a dataset that grows part by part, and the Ray cluster that makes them."""
