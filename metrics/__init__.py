"""What is measured: features, distances between them, and what an image costs."""
