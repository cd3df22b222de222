"""Write the tables of samplers, export formats, exit codes and changeable keys."""

from medjax import cli
from medjax.diffusion.schedulers import SAMPLERS
from medjax.exporting.formats import FORMATS
from medjax.runs.same_run import MAY_DIFFER
from medjax.tasks import TASKS
from medjax_docs.texts import Written, table


def write_samplers() -> Written:
    """Return a table of the samplers."""
    rows = [
        (
            f"`{name}`",
            f"`{sampler.scheduler}`",
            ", ".join(f"`{one}`" for one in sampler.predictions),
            ", ".join(f"`{key}`" for key in sampler.options),
        )
        for name, sampler in SAMPLERS.items()
    ]
    head = ("sampler", "diffusers' class", "predictions", "keys that it reads")
    return "\n".join(table(head, rows)), []


def write_formats() -> Written:
    """Return a table of the export formats of each task, the default one first."""
    rows = []
    for task, row in TASKS.items():
        names = row.formats(row.sections["model"](), row.sections["data"]())
        unknown = [name for name in names if name not in FORMATS]
        assert not unknown, unknown
        rows.append((f"`{task}`", ", ".join(f"`{name}`" for name in names) or "none"))
    return "\n".join(table(("task", "formats, the default first"), rows)), []


def write_may_differ() -> Written:
    """Return the keys that may change between a run and its continuation."""
    return "\n".join(f"- `{pattern}`" for pattern in MAY_DIFFER), []


def write_exit_codes() -> Written:
    """Return a table of the exit codes of every command."""
    rows = [
        ("0", "The command finished."),
        (str(cli.USER_ERROR_EXIT_CODE), "A mistake, named in one line."),
        (
            str(cli.STOPPED_EXIT_CODE),
            "Stopped by a signal. The same command resumes the run.",
        ),
        (
            str(cli.INTERRUPTED_EXIT_CODE),
            "Ctrl-C where nothing can be resumed, for example before training began.",
        ),
        ("1", "An error in medjax itself, with its traceback; or another host failed."),
        ("134", "jax ended the process, because another host disappeared."),
    ]
    return "\n".join(table(("code", "meaning"), rows)), []
