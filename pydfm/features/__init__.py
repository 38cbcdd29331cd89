"""From images and arrays to rows of features: inputs, preprocessing, networks and their layers.

The modules build on each other in this order: ``pictures`` and ``grid``; ``inputs`` and
``transforms``; ``backbones``; ``presets``; ``network``; ``cache``; ``extractor``. Nothing here
imports a room above, such as the statistics or the estimator.
"""
