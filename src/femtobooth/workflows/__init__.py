"""One command per file, each a page that reads from top to bottom. Workflows raise; cli.py prints and exits."""
