"""The Flower ServerApp: settings -> strategy -> rounds -> artefacts.

It builds the backbone that all clients fine-tune, asks every node who it is, runs the strategy's rounds, and leaves the
history, the pictures and the task vectors in the output folder, whether the run completed or not.
"""

from __future__ import annotations

import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from matu_flwr.backbones import create_backbone
from matu_flwr.run.artefacts import Model, write_tensors
from matu_flwr.run.plan import plan_event
from matu_flwr.run.recorder import Recorder
from matu_flwr.run.server_tests import test_on_server
from matu_flwr.settings import Settings
from matu_flwr.strategies import create
from matu_flwr.tasks.suite import load_suite

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federation."""
    settings = Settings.from_run_config(context.run_config)
    suite = load_suite(settings.suite)
    backbone = create_backbone(**settings.backbone_arguments())
    out_dir = output_folder(settings)

    with Recorder(out_dir, settings.matu.merge_options()) as recorder:
        strategy = create(
            settings.strategy,
            settings,
            backbone,
            experiment=f"run-{context.run_id:020d}",  # of one length: two runs send the same number of bytes
            observer=recorder.observe,
        )

        def keep() -> dict[str, str]:
            if not strategy.task_vectors:
                return {}
            classes = {task: list(names) for task, names in strategy.classes.items()}
            model = Model(settings.backbone_arguments(), backbone.fingerprint, classes)
            return write_tensors(out_dir, model, strategy.task_vectors, strategy.heads)

        recorder.keep = keep
        strategy.register(grid)
        groups = {name: task.group for name, task in suite.tasks.items()}
        recorder.observe(plan_event(strategy, settings, context.run_id, groups))
        strategy.start(grid)
        if settings.server_evaluate:
            test_on_server(strategy, backbone, settings, suite, recorder.observe)


def output_folder(settings: Settings) -> Path:
    """The run's folder, new and absolute.

    Without `out-dir` it lies under where Flower runs, which is where the local SuperLink was first started.
    """
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(settings.suite).stem}-{settings.strategy}"
    folder = Path(settings.out_dir or Path("runs") / name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
