from measured import config, fits, root, sets  # noqa: F401 (fixtures)
