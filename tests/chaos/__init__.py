"""Chaos: runs that are killed, or stopped by signals, at any moment have to end as if nothing had happened."""
