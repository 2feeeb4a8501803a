"""The coordinator: rounds, strategies, state and report. Never imports the hospital's side."""
