"""What the screen says when nothing happens."""

from matu_flwr.launch.waiting import Stage, Waiting


def test_a_silence_is_explained_after_half_a_minute_and_then_less_and_less_often():
    now, said = [0.0], []
    waiting = Waiting(said.append, lambda: now[0])
    for second in range(301):
        now[0] = float(second)
        waiting.look("Ray")
    assert said == [f"waiting for Ray, {seconds} s so far" for seconds in (30, 60, 120, 240)]


def test_a_slow_run_is_not_called_silent_while_it_keeps_its_pace():
    now, said = [0.0], []
    waiting = Waiting(said.append, lambda: now[0])
    for event in (100.0, 200.0, 300.0):
        now[0] = event
        waiting.hear()
        now[0] = event + 99.0
        waiting.look("the clients")
    assert said == []
    now[0] += 60
    waiting.look("the clients")
    assert said == ["waiting for the clients, 159 s so far"]


def test_events_tell_what_comes_next():
    stage = Stage()
    assert str(stage) == ""
    stage.hear({"event": "plan", "rounds": 2})
    assert str(stage) == "the clients of round 1"
    stage.hear({"event": "client", "client": "a"})
    stage.hear({"event": "client", "client": "b"})
    assert str(stage) == "the clients of round 1 (a, b answered)"
    stage.hear({"event": "round", "round": 1})
    assert str(stage) == "the clients of round 2"
    stage.hear({"event": "round", "round": 2})
    assert str(stage) == "the tests after the last round, and for the results"
    stage.hear({"event": "resume", "round": 1})
    assert str(stage) == "the clients of round 2"
