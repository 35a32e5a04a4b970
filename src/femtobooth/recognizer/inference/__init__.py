"""Files to model outputs: sources, runtimes, batches, rows and indexes."""
