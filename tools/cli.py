"""The ``negindex`` command. Parse, call one library function, print; heavy packages load only when needed."""

from __future__ import annotations

import importlib

import click

_COMMANDS = {  # name: (module, what `negindex --help` says)
    "build": ("build", "Put images, or ready rows, into a collection, making it when needed."),
    "add": ("build", "Put more in force in a collection."),
    "merge": ("build", "Put the rows of collections into one."),
    "export": ("export", "Write a collection's rows to one file, to be handed on."),
    "withdraw": ("withdraw", "Take rows out of force."),
    "erase": ("erase", "Remove rows' bytes and names everywhere, for good."),
    "claim": ("claim", "Take in claims, decide on them, and see which are due."),
    "similar": ("similar", "Look for images that are in a collection already, or nearly so."),
    "dedup": ("dedup", "Group near-duplicates; keep one row an image."),
    "status": ("status", "Say what a collection holds and what is in force."),
    "log": ("log", "List what changed, version by version."),
    "diff": ("diff", "Say what changed between two versions."),
    "report": ("report", "Write statements of reasons and monthly summaries."),
    "calibrate": ("calibrate", "Learn the kernel that denoises a set best."),
    "gates": ("gates", "How often gates speak up, and of whom."),
    "engine": ("engine", "Keep a set's index in Milvus, beyond this machine's memory."),
    "compact": ("compact", "Merge small files, give up what old versions hold."),
    "rows": ("rows", "Have a collection's rows lie elsewhere, such as in a bucket."),
    "verify": ("verify", "Check every byte of a collection against its record."),
    "checkpoint": ("checkpoint", "Export the log's signed root, to keep elsewhere."),
    "prove": ("prove", "Check a receipt, offline, against the log."),
    "backup": ("backup", "Copy a collection while it is in use."),
    "restore": ("backup", "Bring a collection back from a backup."),
    "generate": ("generate", "Sample images from a pipeline, guarded, with receipts."),
    "reference": ("reference", "Make a benign reference for a guard."),
    "serve": ("serve", "Answer samplers over HTTP from the sets of a directory."),
    "apikey": ("apikey", "Make, list and revoke the keys of the service."),
    "key": ("key", "Make and show the keys that sign checkpoints and receipts."),
    "bench": ("bench", "Measure what things cost on this machine."),
    "eval": ("eval", "Compare methods, with intervals, on a small text-to-image model."),
    "demo": ("demo", "Show the main job on real images, and check it."),
    "train-digits": ("train_digits", "Train the demo's small model on handwritten digits."),
    "train-world": ("train_world", "Train a small text-to-image model, and a judge of it."),
}

_NAMED = {"eval": "eval_"}  # where Python has another thing of that name


class _LazyGroup(click.Group):
    """Imports a command's module when it is asked for, so that `negindex --help` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"negindex.tools.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, _NAMED.get(cmd_name, cmd_name.replace("-", "_")))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, said) for name, (_, said) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="negindex")
def main() -> None:
    """Build a negation set, keep samples away from it, put takedowns into force.

    \b
    Exit codes: 0 done, 1 failed, 2 usage, 3 partly done, 10 not there, 11 locked,
    12 not allowed, 13 integrity, 130 interrupted.
    """
