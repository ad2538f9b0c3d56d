"""Count the lines of code of src/slmrec: without blank lines, comments and docstrings.

A string that documents an attribute counts as a docstring. With --against, the same count of another git revision is
shown beside it.

Run: python benchmarks/code_lines.py [--against REV]
"""

import argparse
import ast
import io
import subprocess
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
PACKAGE = PurePosixPath("src/slmrec")
_NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}


def main() -> None:
    """Print the lines of code of each folder, and in total."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REV", help="git revision to compare with")
    revision = parser.parse_args().against
    counts = {"working tree": count_folders(files_on_disk())}
    if revision is not None:
        counts = {revision: count_folders(files_of_revision(revision)), **counts}
    folders = sorted(set().union(*counts.values()))
    widths = [max(len(name), 8) for name in counts]
    print(f"{'folder':<24}" + "  ".join(f"{name:>{width}}" for name, width in zip(counts, widths, strict=True)))
    for folder in [*folders, "total"]:
        numbers = [count.total() if folder == "total" else count[folder] for count in counts.values()]
        print(f"{folder:<24}" + "  ".join(f"{num:>{width},}" for num, width in zip(numbers, widths, strict=True)))


def count_folders(files: Iterator[tuple[PurePosixPath, str]]) -> Counter[str]:
    """Return the lines of code of each folder of the package."""
    counts: Counter[str] = Counter()
    for path, source in files:
        counts[str(path.relative_to(PACKAGE).parent)] += count_lines(source)
    return counts


def count_lines(source: str) -> int:
    r"""Return the number of lines of a module that hold code.

    Example:
        >>> count_lines('x = 1\n"Doc."\n\n# comment\ny = (\n    2\n)\n')
        4
    """
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines: set[int] = set()
    for token in tokens:
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - set(_docstring_lines(ast.parse(source))))


def files_on_disk() -> Iterator[tuple[PurePosixPath, str]]:
    """Yield path and content of each Python file of the package in the working tree."""
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        yield PurePosixPath(path.relative_to(ROOT).as_posix()), path.read_text(encoding="utf-8")


def files_of_revision(revision: str) -> Iterator[tuple[PurePosixPath, str]]:
    """Yield path and content of each Python file of the package in a git revision."""
    for name in _git("ls-tree", "-r", "--name-only", revision, str(PACKAGE)).splitlines():
        if name.endswith(".py"):
            yield PurePosixPath(name), _git("show", f"{revision}:{name}")


def _docstring_lines(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, encoding="utf-8").stdout


if __name__ == "__main__":
    main()
