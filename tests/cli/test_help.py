from tests.support.command import matu


def test_help_names_the_commands() -> None:
    text = matu("--help")
    assert all(command in text for command in ("run", "report", "show"))


def test_data_has_its_commands() -> None:
    text = matu("data", "--help")
    assert all(command in text for command in ("prepare", "check", "partition"))
