"""What a fit takes: arrays, image files, labels, in one form of batches."""
