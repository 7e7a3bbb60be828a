"""The Flower ServerApp: settings -> strategy -> rounds -> artefacts.

It builds the backbone that all clients fine-tune, asks every node who it is, runs the strategy's rounds, and leaves the
history, the pictures and the task vectors in the output folder, whether the run completed or not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from matu_flwr.backbones import LinearHead, Prompts, create_backbone, zero_shot_heads
from matu_flwr.backbones.device import choose_device
from matu_flwr.run.artefacts import Model, write_tensors
from matu_flwr.run.partition_manifest import run_manifest, write_partition
from matu_flwr.run.plan import plan_event
from matu_flwr.run.recorder import Recorder
from matu_flwr.run.server_tests import test_on_server
from matu_flwr.settings import Settings
from matu_flwr.strategies import create
from matu_flwr.tasks.prompts import GENERAL
from matu_flwr.tasks.suite import Suite, load_suite

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federation."""
    settings = Settings.from_run_config(context.run_config)
    suite = load_suite(settings.suite)
    backbone = create_backbone(**settings.backbone_arguments(), device=choose_device(settings.train.device))
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
            zero_shot = settings.train.heads == "zero-shot"
            model = Model(settings.backbone_arguments(), backbone.fingerprint, classes, zero_shot)
            return write_tensors(out_dir, model, strategy.task_vectors, frozen | strategy.heads)

        recorder.keep = keep
        strategy.register(grid)
        recorder.artefacts = write_partition(run_manifest(settings, strategy.clients, backbone.image_size), out_dir)
        frozen = frozen_heads(settings, suite, strategy.classes)
        groups = {name: task.group for name, task in suite.tasks.items()}
        recorder.observe(plan_event(strategy, settings, context.run_id, groups, backbone))
        strategy.start(grid)
        if settings.server_evaluate:
            test_on_server(strategy, backbone, settings, suite, frozen | strategy.heads, recorder.observe)


def frozen_heads(settings: Settings, suite: Suite, classes: Mapping[str, tuple[str, ...]]) -> dict[str, LinearHead]:
    """Zero-shot heads for the server's tests and artefacts, the clients' own; none where heads are trained."""
    if settings.train.heads != "zero-shot":
        return {}
    prompts = {
        task: Prompts(names, suite.tasks[task].templates if task in suite.tasks else GENERAL)
        for task, names in classes.items()
    }
    return zero_shot_heads(settings.backbone.name, prompts, settings.backbone.heads_file).heads


def output_folder(settings: Settings) -> Path:
    """The run's folder, new and absolute.

    Without `out-dir` it lies under where Flower runs, which is where the local SuperLink was first started.
    """
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(settings.suite).stem}-{settings.strategy}"
    folder = Path(settings.out_dir or Path("runs") / name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
