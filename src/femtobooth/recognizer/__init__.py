"""ConvNeXt-Femto side: photos to labels, embeddings and edge artifacts."""
