"""``jaxad COMMAND``: what ``python -m jaxad.COMMAND`` does."""

import difflib
import sys
from importlib import import_module

from jaxad import errors
from jaxad.errors import UserError

# The module of each command, whether an experiment may come first in place of --config, and what it does.
COMMANDS = {
    "train": ("jaxad.train", True, "trains a detector, or resumes its training, and evaluates it"),
    "evaluate": ("jaxad.evaluate", False, "scores the test images of a trained detector, or of several together"),
    "predict": ("jaxad.predict", False, "scores image files and folders, with heatmaps"),
    "export": ("jaxad.export", False, "writes a detector as ONNX, OpenVINO or StableHLO, and checks it"),
    "serve": ("jaxad.serve", False, "answers over HTTP, shows a page to try a detector on, and watches a folder"),
    "refit": ("jaxad.refit", False, "takes more good images into a detector of published weights' features"),
    "check": ("jaxad.check", False, "says what is wrong with a folder of images before a training"),
    "submission": ("jaxad.submission", False, "scores private test images of MVTec AD 2 for its benchmark"),
    "report": ("jaxad.report", False, "gathers results into a table or a page"),
    "benchmark": ("jaxad.benchmark", True, "measures synthesis, training and inference in images/s"),
    "sweep": ("jaxad.sweep.__main__", True, "trains over categories, values and seeds, to one table"),
    "synthetic_anomalies": ("jaxad.synthetic_anomalies.__main__", True, "scores detectors on pasted shapes"),
}
_WIDTH = max(map(len, COMMANDS))
_HELP = "\n".join([
    "usage: jaxad COMMAND ...",
    "",
    "Finds defects in images after seeing only good ones: jaxad train nsa_logistic trains on the demo.",
    "",
    *(f"  {name:{_WIDTH}}  {what}" for name, (_, _, what) in COMMANDS.items()),
    "",
    "jaxad COMMAND --help tells its options. An experiment is NAME[:CATEGORY] or FILE[:CATEGORY].",
])  # fmt: skip


def main() -> None:
    """Runs the command that the user typed."""
    errors.end_on_interrupt_now()
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(_HELP)
        return
    if name not in COMMANDS:
        errors.run(lambda: _refuse(name))
    module, takes_experiment, _ = COMMANDS[name]
    if takes_experiment and arguments and not arguments[0].startswith("-"):
        arguments = ["--config", *arguments]
    command = import_module(module).main  # before `errors.run`, for which Ctrl-C waits
    errors.run(lambda: command(arguments))


def _refuse(name: str) -> None:
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
    raise UserError(f"jaxad has no command {name!r}; {hint}")


if __name__ == "__main__":
    main()
