"""Each message that troubleshooting explains is a message of the package."""

import ast
import re

from tests.pages import DOCS, REPOSITORY


def test_each_message_of_troubleshooting_is_in_the_code():
    page = (DOCS / "troubleshooting.md").read_text()
    shown = re.findall(r"^### `([^`]+)`$", page, re.MULTILINE)
    assert len(shown) > 20
    said = "\n".join(messages())
    for message in shown:
        parts = [re.escape(part) for part in message.split("…")]
        assert re.search("[^\n]*".join(parts), said), message


def messages() -> list[str]:
    """Return the strings of the package, with … in place of each value."""
    found = []
    for path in sorted((REPOSITORY / "medjax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            text = string(node)
            found.append(re.sub(r"%[sdrg]", "…", text).replace("\n", " "))
    return found


def string(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(string, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return string(node.left) + string(node.right)
    return "…"
