"""Back to images: one task per file."""
