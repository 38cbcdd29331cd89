"""From images and arrays to rows of features: sources, preprocessing, backbones and their layers.

The modules build on each other in this order: ``arrays`` and ``grid``; ``labels``, ``images`` and
``transforms``; ``sources``; ``backbones``; ``network``; ``cache``; ``extractor``. Nothing here
imports a room above, such as the statistics or the estimator.
"""
