"""A run: its settings, stages, work directory, answers and report."""
