"""What every room stands on: checks, threads, files that are replaced atomically, versions."""
