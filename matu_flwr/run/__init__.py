"""What a run writes and shows: plan, history, checkpoints, console, metrics, summary and pictures."""
