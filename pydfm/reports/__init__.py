"""What a person or another program opens: pages, plots, files of regions."""
