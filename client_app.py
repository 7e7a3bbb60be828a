"""The Flower ClientApp: message -> local fine-tuning of the client's tasks -> reply.

The same app runs in a simulation, where every node gets a part of the suite, and on a real node with its own images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from matu_flwr import logs, wire
from matu_flwr.backbones import Backbone, Prompts, ZeroShotHeads, backbone_arguments, create_backbone, zero_shot_heads
from matu_flwr.backbones.device import choose_device
from matu_flwr.backbones.zero_shot import check_fit
from matu_flwr.client import ClientState
from matu_flwr.client.client_round import ClientRound
from matu_flwr.client.evaluate import Evaluation
from matu_flwr.client.node import Node, node_of
from matu_flwr.config import paths
from matu_flwr.config.settings import Scalar, Settings
from matu_flwr.strategies import method


def log_about_this_run(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """Flower mod: add the run's id to every line that is logged while a message is handled."""
    logs.set_up()
    with logs.about(run=str(context.run_id)):
        return call_next(message, context)


app = ClientApp(mods=[log_about_this_run])


@app.query("who_are_you")
def who_are_you(message: Message, context: Context) -> Message:
    """Tell the server this client's name, its tasks, and the fingerprint of its pre-trained weights θ_p."""
    values, _ = wire.decode_settings(message.content)
    settings = Settings.from_flat(values)
    backbone, node = who_i_am(settings, context)
    digests = frozen_heads(settings, node, backbone, context.node_config).digests
    tasks = {
        name: wire.TaskInfo(
            task.classes, len(task.train), len(task.test), digests.get(name, ""), task.data, task.absent
        )
        for name, task in node.tasks.items()
    }
    announcement = wire.Announcement(node.client, node.partition, backbone.fingerprint, tasks)
    return Message(wire.encode_announcement(announcement), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Test the received model if the server asks for it, fine-tune every task, and send back the trained vectors."""
    downlink, work = open_message(message, context)
    tested = work.evaluate() if downlink.evaluate else {}
    log_tested(tested)
    trained = work.train()
    metrics = {task: task_metrics(tested.get(task), loss) for task, loss in trained.losses.items()}
    for task, loss in trained.losses.items():
        with logs.about(task=task):
            logs.detail("trained on %d images, mean loss %.4f", len(work.node.tasks[task].train), loss)
    uplink = wire.Uplink(
        round=downlink.round,
        fingerprint=downlink.fingerprint,
        vectors=trained.vectors,
        num_examples=num_examples(work.node),
        heads=trained.heads,
        metrics=metrics,
        seconds=work.watch.seconds,
    )
    chosen = work.settings.wire
    return Message(wire.encode_uplink(uplink, chosen.vector_dtype, chosen.compression), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Test the received model on this client's test images, and send back the numbers of correct answers."""
    downlink, work = open_message(message, context, trained=True)
    tested = work.evaluate()
    log_tested(tested)
    metrics = {task: task_metrics(found) for task, found in tested.items()}
    uplink = wire.Uplink(
        round=downlink.round,
        fingerprint=downlink.fingerprint,
        vectors=None,
        num_examples=num_examples(work.node),
        heads={},
        metrics=metrics,
        seconds=work.watch.seconds,
    )
    return Message(wire.encode_uplink(uplink), reply_to=message)


def open_message(message: Message, context: Context, *, trained: bool = False) -> tuple[wire.Downlink, ClientRound]:
    """Check a message against what this node holds, and prepare the work that it asks for.

    Parameters
    ----------
    message, context : Message, Context
        As Flower hands them to the app.
    trained : bool
        Whether the training of this round is over. The client then reads the state that it kept in this round, and
        otherwise that of a round before.

    Returns
    -------
    tuple
        The decoded message, and the work to do.
    """
    values, run_name = wire.decode_settings(message.content)
    settings = Settings.from_flat(values)
    if settings.train.threads:
        torch.set_num_threads(settings.train.threads)
    backbone, node = who_i_am(settings, context)
    rule = method(settings.strategy).rule
    expected = wire.Expected(
        who=f"server to client {node.client!r}",
        d=rule.shared_length(backbone.layout, settings),
        fingerprint=backbone.fingerprint,
        classes={name: len(task.classes) for name, task in node.tasks.items()},
        num_features=backbone.num_features,
    )
    downlink = wire.decode_downlink(message.content, expected)
    logs.now_about(round=downlink.round, phase="evaluate" if trained else "train")
    work = ClientRound(
        node,
        backbone,
        settings,
        downlink.round,
        rule=rule,
        received=downlink.vectors,
        heads=downlink.heads,
        frozen=frozen_heads(settings, node, backbone, context.node_config).heads,
        state=ClientState(
            paths.state_dir(settings, context.node_config),
            run_name,
            node.client,
            attempt=downlink.attempt,
            history=settings.keep_checkpoints,
        ),
        kept_from=downlink.round + trained,
        kept_since=downlink.trained,
    )
    return downlink, work


def who_i_am(settings: Settings, context: Context) -> tuple[Backbone, Node]:
    """Return the node's backbone, and its name, tasks and images. All later log lines get the client's name."""
    backbone = backbone_of(settings, context.node_config)
    node = node_of(settings, context.node_config, backbone.image_size)
    logs.now_about(client=node.client, partition=node.partition)
    return backbone, node


def log_tested(tested: Mapping[str, Evaluation]) -> None:
    """Log one line per task that was tested."""
    for task, found in tested.items():
        with logs.about(task=task):
            logs.detail("%d of %d test images right, loss %.4f", found.correct, found.examples, found.loss)


def backbone_of(settings: Settings, node_config: Mapping[str, Scalar]) -> Backbone:
    """Build the backbone of the settings on the node's device. A process builds it once and then shares it."""
    device = str(node_config.get("device") or settings.train.device)
    return create_backbone(**backbone_arguments(settings), device=choose_device(device))


def frozen_heads(
    settings: Settings, node: Node, backbone: Backbone, node_config: Mapping[str, Scalar]
) -> ZeroShotHeads:
    """Build the zero-shot heads of the node's tasks; empty if heads are trained."""
    if settings.train.heads != "zero-shot":
        return ZeroShotHeads({}, {})
    prompts = {name: Prompts(task.classes, task.templates) for name, task in node.tasks.items()}
    heads_file = str(node_config.get("heads-file") or settings.backbone.heads_file)
    return check_fit(zero_shot_heads(settings.backbone.name, prompts, heads_file), backbone)


def num_examples(node: Node) -> dict[str, int]:
    """Return the number of training images by task."""
    return {name: len(task.train) for name, task in node.tasks.items()}


def task_metrics(tested: Evaluation | None, loss: float = math.nan) -> wire.TaskMetrics:
    """Return one task's numbers for the reply. A task that was not trained has NaN as training loss."""
    if tested is None:
        return wire.TaskMetrics(train_loss=loss)
    return wire.TaskMetrics(loss, tested.correct, tested.examples, tested.loss)
