"""What `evaluate` consists of: what is asked of a model, and how several subjects are told apart."""
