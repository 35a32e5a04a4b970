"""What both halves train with. This room knows neither the generator nor the recognizer."""
