"""Files as cameras write them: their orientation, pages, depth and odd TIFFs."""
