from measured import config, fits, overflow, root, sets  # noqa: F401 (fixtures)
