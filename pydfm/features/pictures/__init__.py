"""Files as cameras write them: their orientation, pages, grey levels and odd TIFFs."""
