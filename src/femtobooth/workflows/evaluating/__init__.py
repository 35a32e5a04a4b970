"""What `evaluate` consists of: what is asked of a model, and how subjects and labels are told apart."""
