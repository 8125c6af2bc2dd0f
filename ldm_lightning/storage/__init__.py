"""Files on disk: atomic writes, locks, bounded reads, identity of content."""
