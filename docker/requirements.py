"""Print the packages that the image installs: all dependencies but Ray, which only simulations need."""

import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
dependencies = [name.replace("flwr[simulation]", "flwr") for name in project["dependencies"]]
print("\n".join([*dependencies, *project["optional-dependencies"]["lora"]]))
