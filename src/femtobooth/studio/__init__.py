"""The studio: pages in a browser and an HTTP API, over the same commands and runs as the command line."""
