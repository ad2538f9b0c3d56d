"""The command `slmrec data describe`: statistics and plots of a prepared data set."""

from pathlib import Path

from rich.console import Console

from slmrec.data import describe as data
from slmrec.errors import ConfigError
from slmrec.files import printable
from slmrec.report.describe import draw, tables
from slmrec.storage.cache import named


def describe(folder: Path, png: Path | None = None) -> None:
    """Print the statistics of a data set and draw its distributions.

    Args:
        folder: the folder of a data set or of a run.
        png: the file for the plots; None: `describe.png` in the folder.

    Raises:
        ConfigError: the name of the file does not end in .png.
        DataError: the folder is not a data set.
    """
    png = png or folder / "describe.png"
    if png.suffix != ".png" or png.is_dir():
        raise ConfigError(f"{png}: the picture is a .png file; give --output NAME.png")
    description = data.describe(folder)
    console = Console(markup=False, highlight=False)
    for part in tables(str(folder), description):
        console.print(part)
    try:
        draw(description, png)
    except ModuleNotFoundError:
        print("no picture: it needs matplotlib; pip install 'slmrec[plots]'", flush=True)
    else:
        print(f"picture: {printable(named(str(png)))}", flush=True)
