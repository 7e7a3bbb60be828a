"""The run: plan, history, console, pictures, artefacts, and the launcher."""
