from hypothesis import settings

# The same examples in every run, on machines of any speed.
settings.register_profile("pydfm", derandomize=True, deadline=None, database=None)
settings.load_profile("pydfm")
