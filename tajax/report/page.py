"""The report as one HTML file that asks no network for anything: style, scripts, figures and images are in it."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from importlib import resources
from pathlib import Path

import tajax
from tajax.report import playground
from tajax.report.sections import Page, figures
from tajax.report.style import specification

# What the page may do: run its own scripts, known by their hashes, and show images it holds. Nothing is fetched, and no
# name of a class or a path becomes code even if it escaped from its text.
_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
    "form-action 'none'"
)


def html(page: Page) -> bytes:
    """The page, UTF-8."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=False, keep_trailing_newline=True
    )
    specs: list[Markup] = []
    plots: dict[str, range] = {}
    for figure in figures(page):
        plots[figure.name] = range(len(specs), len(specs) + len(figure.panels))
        specs += [Markup(script_json(specification(panel))) for panel in figure.panels]
    play = page.playground
    scripts = [*([_vega()] if specs else []), _resource("page.js"), *([_resource("playground.js")] if play else [])]
    played = environment.from_string(_resource("playground.html.jinja")).render(play=play) if play else ""
    written = environment.from_string(_resource("page.html.jinja")).render(
        page=page,
        plots=plots,
        specs=specs,
        scripts=[Markup(script) for script in scripts],
        style=Markup(_resource("page.css") + (_resource("playground.css") if play else "")),
        playground=Markup(played),
        play_data=Markup(script_json(playground.data(play))) if play else None,
        policy=_POLICY.format(scripts=" ".join(map(_hash, scripts))),
        version=tajax.__version__,
    )
    return written.encode()


def is_page(path: Path) -> bool:
    """Whether a file is a page of `html`."""
    with path.open("rb") as file:
        return b'<meta name="generator" content="tajax ' in file.read(4096)


def script_json(value: object) -> str:
    r"""JSON for a script element: no sign in it can end the element or begin a comment.

    Example:
        >>> print(script_json("</script>"))
        "\u003c/script\u003e"
    """
    written = json.dumps(value, separators=(",", ":"))
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@functools.cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script: of the versions that write the files for papers, too."""
    import vl_convert

    return vl_convert.javascript_bundle().replace("</script", "<\\/script")  # type: ignore[call-arg]  # not in its stub


def _resource(name: str) -> str:
    return (resources.files("tajax.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
