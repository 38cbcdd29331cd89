"""A campaign of malformed files, odd arrays and kills, with fixed seeds."""
