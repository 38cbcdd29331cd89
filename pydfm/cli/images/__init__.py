"""Commands that look at images: scores, pages, measures."""
