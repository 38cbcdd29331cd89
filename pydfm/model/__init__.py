"""What a fit gives: layers, maps, fusion, the training state and the fitted model."""
