"""Families of text-to-image models: what each has of its own, one file a family."""
