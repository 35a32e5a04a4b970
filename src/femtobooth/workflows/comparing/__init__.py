"""What `compare` consists of: the models, their measurements, the tables and the page."""
