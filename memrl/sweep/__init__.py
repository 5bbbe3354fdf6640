"""Many cells: grids, packs and trials."""
