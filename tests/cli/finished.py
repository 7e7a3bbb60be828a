"""The shortest run that has ended."""

import json
from pathlib import Path


def finished_run(folder: Path) -> Path:
    """The shortest history that a report can be drawn from."""
    end = {
        "event": "end",
        "status": "completed",
        "error": None,
        "seconds": 3.0,
        "artefacts": {"summary": "/runs/a/summary.json"},
        "similarity": None,
        "related": {},
        "peak_memory_bytes": 5_000,
    }
    folder.mkdir()
    (folder / "history.jsonl").write_text(json.dumps(end) + "\n")
    return folder
