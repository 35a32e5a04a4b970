"""Picture files: decoded, compared, laid out on sheets, and who drew them. This room knows no model."""
