"""What a run leaves behind: images, grids, animations, rows of results, plots. Nothing here computes a result."""
