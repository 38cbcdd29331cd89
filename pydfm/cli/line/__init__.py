"""What `pydfm watch` is made of: inbox, record that survives a kill, webhook, and the loop."""
