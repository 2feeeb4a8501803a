"""The coordinator: rounds, state and report. Never imports the hospital's side."""
