"""Many subjects behind one address: a base for each replica of Ray Serve, and adapters as they are asked for."""
