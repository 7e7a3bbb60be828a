from rich.table import Table

from matu_flwr.cli.ui import console, print_error

ODD = "a\x1b[31mb \u202e [bold]c[/] \ud800"
SEEN = r"a\x1b[31mb \u202e [bold]c[/] \ud800"


def test_no_text_steers_the_terminal(capsys):
    screen = console()
    screen.print(ODD, soft_wrap=True)
    table = Table()
    table.add_column("column")
    table.add_row(ODD)
    screen.print(table)
    print_error(ODD)
    found = capsys.readouterr()
    assert found.out.count(SEEN) == 2
    assert found.err == f"error: {SEEN}\n"
