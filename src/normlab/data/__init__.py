"""Real images: where they come from, how they are packed once, and how a run draws its batches from them."""
