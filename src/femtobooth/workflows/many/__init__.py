"""What `train-many` consists of: who is taught, a process each on this machine or a cluster, and how they stand."""
