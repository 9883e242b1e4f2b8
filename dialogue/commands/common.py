"""What the commands share: the target they are given, and how they tell what is wrong."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from ..app import Dialogue
from ..errors import ConfigError, DialogueError

if TYPE_CHECKING:
    from ..storage.sql import SQLStore

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Target = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:ATTRIBUTE",
        help="Where the Dialogue is, e.g. chat.config:dialogue.",
        show_default=False,
    ),
]


def load(target: str) -> Dialogue:
    """Return the `Dialogue` that *target* (``module:attribute``) names; the current folder is searched first.

    Raises:
        ConfigError: There is none, or importing the module failed.
    """
    # A URL that was meant may have a password in it.
    where = "the target" if "://" in target or "@" in target else repr(target)
    module_name, colon, path = target.partition(":")
    if not colon or not path or not all(map(str.isidentifier, (*module_name.split("."), *path.split(".")))):
        raise ConfigError(where, "this is not MODULE:ATTRIBUTE", "Write for example chat.config:dialogue")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ConfigError as error:
        raise ConfigError(f"{error.where}{_place(error)}", error.problem, error.remedy) from error
    except ModuleNotFoundError as error:
        # "chat" missing where "chat.config" was asked for is this one too; anything else is an import inside of it.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _import_failed(module_name, error) from error
        raise ConfigError(
            where,
            f"there is no module {error.name!r} in {folder} or installed",
            "Start in the folder that has it",
        ) from error
    except (Exception, SystemExit) as error:
        raise _import_failed(module_name, error) from error
    found: Any = module
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            names = [name for name, value in vars(module).items() if isinstance(value, Dialogue)]
            remedy = (
                f"It has: {', '.join(names)}" if names else "Make one there: dialogue = Dialogue(rooms={...})"
            )
            raise ConfigError(where, f"{module_name} has no {path!r}", remedy) from error
    if not isinstance(found, Dialogue):
        raise ConfigError(
            where,
            f"this is not a Dialogue but of type {type(found).__name__}",
            "Name the Dialogue itself; an application that includes its router is run by your own server",
        )
    return found


def _import_failed(module_name: str, error: BaseException) -> ConfigError:
    # Errors without a text of their own still have a name.
    problem = f"{type(error).__name__}: {error}".replace("\n", " ").removesuffix(": ")
    return ConfigError(f"importing {module_name!r}{_place(error)}", problem, "Correct this, and try again")


def _place(error: BaseException) -> str:
    """Return the last line of the application's own code that *error* came through."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    own = Path(__file__).parent.parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_file() and own not in file.parents and "site-packages" not in file.parts:
            return f" ({file}, line {frame.lineno})"
    return ""


def fail(error: DialogueError | str) -> NoReturn:
    """Say what is wrong in one line, and end with status 1."""
    # A database's own words may have several lines.
    line = " ".join(part.strip() for part in str(error).splitlines())
    err.print(Text.assemble(("Error: ", "bold red"), line), soft_wrap=True)
    raise typer.Exit(1)


def sql_store(target: str) -> SQLStore:
    """Return the `SQLStore` that *target* names: a store's URL, or a Dialogue as ``module:attribute``. No I/O.

    Raises:
        ConfigError: There is none, or it is of another kind.
    """
    from ..storage.sql import SQLStore

    if "://" in target:
        return SQLStore(target)
    if ":" not in target:
        raise ConfigError(
            repr(target),
            "this is neither a database's URL nor MODULE:ATTRIBUTE",
            "Write for example sqlite:///chat.db or chat.config:dialogue",
        )
    store = load(target).store
    if not isinstance(store, SQLStore):
        raise ConfigError(
            repr(target),
            f"its store is a {type(store).__name__}, which has no database",
            'Give the Dialogue one, as store="sqlite:///chat.db", or name the database itself',
        )
    return store
