"""What a person looks at: heatmaps and figures. Arrays in, images out."""
