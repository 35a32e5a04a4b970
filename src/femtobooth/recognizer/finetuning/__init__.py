"""Labelled pictures, what they are worth, and a recognizer that learns them."""
