"""femtobooth: 3-5 photos of one subject in; a generator that draws it anywhere out."""

__version__ = "0.1.0"
