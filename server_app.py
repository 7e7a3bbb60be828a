"""The Flower ServerApp: settings -> strategy -> rounds -> results.

It builds the backbone that all clients fine-tune, asks every node for its name and its tasks, and runs the strategy's
rounds. It leaves the history, the pictures and the task vectors in the output folder, whether the run completed or
failed. A run that was cut off can be resumed from its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable
from logging import WARNING
from pathlib import Path

from flwr.app import Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from matu_flwr import logs
from matu_flwr.backbones import (
    Backbone,
    BackboneError,
    LinearHead,
    Prompts,
    backbone_arguments,
    create_backbone,
    zero_shot_heads,
)
from matu_flwr.backbones.device import choose_device
from matu_flwr.backbones.zero_shot import check_fit
from matu_flwr.config import paths
from matu_flwr.config.settings import Settings, given_values
from matu_flwr.files import exclusive_folder
from matu_flwr.models.artefacts import Model, write_tensors
from matu_flwr.run.partition import remarks, run_manifest
from matu_flwr.run.partition_picture import write_partition
from matu_flwr.run.plan import plan_event
from matu_flwr.run.recorder import Recorder
from matu_flwr.run.resume import Keeper, settings_of
from matu_flwr.run.server_tests import test_on_server
from matu_flwr.strategies import Client, ManyTaskStrategy, create, prepared
from matu_flwr.strategies.matu import merge_options
from matu_flwr.tasks.declared import declared_by
from matu_flwr.tasks.prompts import GENERAL
from matu_flwr.tasks.suite import Suite, load_suite

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federation from registration to results, or resume one."""
    logs.set_up()
    logs.now_about(run=str(context.run_id))
    # `context.run_config` also has the defaults. The override has only what was typed, which must win over a preset.
    asked, found = settings_of(given_values(context.run_config, grid.run.override_config))
    settings = prepared(asked)
    suite = load_suite(settings.suite)
    backbone = create_backbone(**backbone_arguments(settings), device=server_device(settings.train.device))
    out_dir = output_folder(settings)

    # Filled after the registration.
    frozen: dict[str, LinearHead] = {}
    # Made below, because it tells the recorder what happens. What to keep of it at the end is said before.
    strategy: ManyTaskStrategy | None = None

    def keep() -> dict[str, str]:
        if strategy is None or not strategy.task_vectors:
            return {}
        classes = {task: list(names) for task, names in strategy.classes.items()}
        zero_shot = settings.train.heads == "zero-shot"
        model = Model(backbone_arguments(settings), backbone.fingerprint, classes, zero_shot)
        return write_tensors(out_dir, model, strategy.task_vectors, strategy.heads | frozen)

    after = {"after": found.checkpoint.history, "earlier": found.checkpoint.seconds} if found else {}
    with Recorder(out_dir, merge_options(settings.matu), keep=keep, **after) as recorder:
        keeper = Keeper(settings, recorder)
        strategy = create(
            settings.strategy,
            settings,
            backbone,
            # All run names have the same length, so that two equal runs send the same number of bytes.
            run_name=found.checkpoint.run_name if found else f"run-{context.run_id:020d}",
            attempt=found.checkpoint.attempt + 1 if found else 0,
            observer=recorder.observe,
            after_round=keeper.save,
        )
        earlier = found.checkpoint.federation if found else {}
        strategy.register(
            grid,
            at_least=len(earlier),
            declared=declared_by(suite),
            # Checkpoints of earlier releases know nothing of keys.
            bound={name: facts.get("key", "") for name, facts in earlier.items()},
            keys_stay=any(facts.get("registered", False) for facts in earlier.values()),
        )
        if found:
            keeper.resume(strategy, found, context.run_id)
        held = run_manifest(settings, strategy.clients, backbone.image_size)
        recorder.note(write_partition(held, out_dir))
        frozen |= frozen_heads(settings, suite, strategy.clients, backbone)
        if not found:
            groups = {name: task.group for name, task in suite.tasks.items()}
            recorder.observe(plan_event(strategy, settings, context.run_id, groups, backbone, remarks(held)))
            keeper.save(strategy)
        strategy.start(grid)
        if settings.server_evaluate:
            test_on_server(strategy, backbone, settings, suite, strategy.heads | frozen, recorder.observe)


def server_device(wanted: str) -> str:
    """Choose the device for the server's tests. If the server does not have the GPU asked for, it takes the CPU."""
    try:
        return choose_device(wanted)
    except BackboneError:
        log(WARNING, "train.device = %s, but the server sees no GPU: it tests on the CPU", wanted)
        return "cpu"


def frozen_heads(
    settings: Settings, suite: Suite, clients: Iterable[Client], backbone: Backbone
) -> dict[str, LinearHead]:
    """Build the zero-shot heads that the clients announced, for the server's own tests and for the results.

    A head that cannot be built here is left out with a warning, because training does not need it.

    Returns
    -------
    dict of str to LinearHead
        Heads by task; empty if heads are trained.
    """
    if settings.train.heads != "zero-shot":
        return {}
    heads = {}
    for task, info in sorted({task: info for client in clients for task, info in client.tasks.items()}.items()):
        own = suite.tasks[task].templates if task in suite.tasks else GENERAL
        try:
            # Try both sets of prompts: a node with its own images uses the general one, whatever its tasks are called.
            for templates in dict.fromkeys((own, GENERAL)):
                prompts = {task: Prompts(info.classes, templates)}
                found = zero_shot_heads(settings.backbone.name, prompts, settings.backbone.heads_file)
                if found.digests[task] == info.head:
                    heads |= check_fit(found, backbone).heads
        except BackboneError as error:
            log(
                WARNING,
                "no zero-shot head for task %s on the server, so it is neither tested nor exported there: %s",
                task,
                error,
            )
            continue
        if task not in heads:
            log(
                WARNING,
                "the zero-shot head that the clients have for task %s (digest %s) cannot be built on the server, so it "
                "is neither tested nor exported there; set backbone.heads-file to the file that the clients use",
                task,
                info.head,
            )
    return heads


def output_folder(settings: Settings) -> Path:
    """Make the run's output folder and return its absolute path.

    Without `out-dir` it is a new folder in `runs` below the folder in which Flower runs. That is where the local
    SuperLink was first started.
    """
    if not settings.out_dir:
        # Another run may have begun in the same second.
        return exclusive_folder(Path("runs").absolute() / paths.run_folder_name(settings))
    folder = Path(settings.out_dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
