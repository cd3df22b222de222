"""Arguments that a careless launcher would change on their way."""

import random

_PIECES = (
    *(
        "a",
        "B",
        "0",
        " ",
        "  ",
        "'",
        '"',
        "\\",
        "$",
        "$$",
        "$(MEDJAX_PROCESS)",
        "${HOME}",
    ),
    *("$(date)", "`date`", "(", ")", "{", "}", "[", "]", "*", "?", "~", "!", "#", ";"),
    *(
        "&",
        "|",
        "<",
        ">",
        "\n",
        "\t",
        "%",
        ":",
        ", ",
        "- ",
        "é",
        "肺",
        "🫁",
        "\x7f",
        "\x1b",
    ),
    *("EOF", "\nEOF\n", "{{x}}", "yes", "null", "0x1", "\\n", "=", "@", "^", "-"),
)
WORKDIR = "gs://bucket/it's $(one) run"
PLAIN = ("--config=cxr_controlnet:v6e", f"--workdir={WORKDIR}")


def nasty(seed: int) -> tuple[str, ...]:
    """Return arguments of medjax train, from pieces that mean something somewhere."""
    draw = random.Random(seed)
    texts = ("".join(draw.choices(_PIECES, k=draw.randint(0, 6))) for _ in range(12))
    return (*PLAIN, *(f"--config.data.root={text}" for text in texts), "", "(a, 'b')")
