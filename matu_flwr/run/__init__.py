"""What a run keeps and shows: plan, history, checkpoints, console, metrics, summary and pictures."""
