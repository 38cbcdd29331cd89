"""Commands that make a model, change it or describe it."""
