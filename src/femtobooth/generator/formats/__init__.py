"""How a Stable Diffusion lies on disk: diffusers' folders and single files."""
