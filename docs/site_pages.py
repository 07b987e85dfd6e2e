"""A hook of mkdocs: the site is made of the Markdown pages where they lie in the repository, and of files that they link to.

Pages keep their places, so that a link leads to the same file here, on the site and on the Hub. `make docs` runs it.
"""

import atexit
import re
import shutil
import tempfile
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The folder of the package has any name, and mkdocstrings, which reads without importing, looks for one named ctfm."""
    place = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, place)
    (place / "ctfm").symlink_to(ROOT)
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [str(place)]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The theme's own files, every page of the navigation, and what pages link to."""
    pages = [page for entry in config.nav or [] for page in find_pages(entry)]
    linked = {
        (ROOT / page).parent.joinpath(target).resolve()
        for page in pages
        for target in LINK.findall((ROOT / page).read_text())
    }
    others = sorted(str(path.relative_to(ROOT)) for path in linked if path.is_file())
    kept = [file for file in files if file.src_dir != config.docs_dir]
    added = [
        File(path, str(ROOT), config.site_dir, config.use_directory_urls) for path in dict.fromkeys([*pages, *others])
    ]
    return Files([*kept, *added])


def find_pages(entry: object) -> list[str]:
    """Paths in an entry of the navigation."""
    if isinstance(entry, str):
        return [entry]
    values = entry.values() if isinstance(entry, dict) else entry
    return [page for value in values for page in find_pages(value)]  # type: ignore[attr-defined]
