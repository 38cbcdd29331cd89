from measured import root  # noqa: F401 (a fixture)
