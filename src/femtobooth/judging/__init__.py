"""What a picture is worth: the recognizer's encoders score what the generator makes."""
