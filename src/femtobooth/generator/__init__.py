"""The Stable Diffusion side: photos in, a personalized generator out, pictures drawn with it."""
