from measured import overflow, root  # noqa: F401 (fixtures)
