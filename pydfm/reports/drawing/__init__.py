"""Scores and maps as colours, charts and files of pictures: arrays in."""
