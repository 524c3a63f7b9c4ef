"""Drawing at scale: many images, chains, interpolations, and the pictures made of them."""
