"""Recipes: configurations that come with the package, opened by name (`--config beauty`)."""

from pathlib import Path

from slmrec.errors import ConfigError
from slmrec.files import special_file

FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """Return the names of all recipes, in alphabetical order.

    Example:
        >>> "beauty" in recipe_names()
        True
    """
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def purpose(name: str) -> str:
    """Return the first line of a recipe: what it is for.

    Example:
        >>> purpose("words")[:46]
        'A teacher that reads the words of item titles,'
    """
    with (FOLDER / f"{name}.yaml").open(encoding="utf-8") as lines:
        return next(lines).removeprefix("#").strip()


def find_recipe(source: Path | str) -> Path:
    """Return the file of a recipe, given by its path or by its name.

    Raises:
        ConfigError: There is neither such a file nor such a recipe.
    """
    if Path(source).is_file():
        return Path(source)
    if str(source) in recipe_names():
        return FOLDER / f"{source}.yaml"
    if kind := special_file(Path(source)):
        raise ConfigError(f"{source}: is {kind}, expected a YAML file or a recipe; save the settings to a file first")
    raise ConfigError(f"{source}: no such file or recipe; recipes: {', '.join(recipe_names())}")
