"""What `personalize` consists of: validation during training, its result and its verdict."""
