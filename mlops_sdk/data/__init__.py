"""Data: validated against expectations, pinned as a revision, pulled by hash."""
