"""What existing clients speak: one small file for each foreign API."""
