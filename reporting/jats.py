"""JATS XML -> blocks. XML is read without entities, DTD or network."""

import re
from pathlib import Path

from .reading import Block, DocumentError, Reading, add_row


def read_jats(path: Path) -> Reading:
    """JATS XML as PubMed Central gives it. References are left out; tables give their captions."""
    try:
        from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] -- compiled, without stubs
    except ImportError as error:
        raise DocumentError("Reading XML needs lxml: pip install lxml.") from error
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, huge_tree=False, load_dtd=False, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.parse(str(path), parser).getroot()
    except (etree.XMLSyntaxError, OSError) as error:  # OSError: an encoding that the declaration names and nobody knows
        raise DocumentError(
            f"{path.name} is not well-formed XML ({error}). Download the article's XML again."
        ) from error
    if any(isinstance(node, etree._Entity) for node in root.iter()):
        raise DocumentError(f"{path.name} defines XML entities, which are not expanded. Save it without a DTD.")
    article = root if _tag(root) == "article" else next((n for n in root.iter() if _tag(n) == "article"), None)
    if article is None:
        raise DocumentError(
            f"{path.name} is XML with the root <{_tag(root)}>, not a JATS <article>. Pass the JATS XML."
        )
    reading = Reading()
    for node in article.iter():
        if _tag(node) == "article-title" and _tag(node.getparent()) == "title-group":
            subtitles = [_words(child) for child in node.getparent() if _tag(child) == "subtitle"]
            reading.blocks.append(Block(text=": ".join([_words(node), *subtitles]), section=("Title",)))
            break
    for abstract in article.findall("./{*}front//{*}abstract"):
        if abstract.get("abstract-type") in (None, "", "structured", "summary"):
            _walk_jats(abstract, ("Abstract",), reading)
    for body in article.findall("./{*}body"):
        _walk_jats(body, (), reading)
    for funding in article.findall("./{*}front//{*}funding-statement"):
        reading.blocks.append(Block(text=_words(funding), section=("Back matter", "Funding")))
    for award in article.findall("./{*}front//{*}award-group"):
        text = ", ".join(
            filter(None, (_words(child) for child in award if _tag(child) in ("funding-source", "award-id")))
        )
        if text:
            reading.blocks.append(Block(text=f"Funding: {text}.", section=("Back matter", "Funding")))
    for meta in article.findall("./{*}front//{*}custom-meta"):
        said = [_words(child) for child in meta if _tag(child) in ("meta-name", "meta-value")]
        if re.search(r"regist|trial|protocol|data avail", said[0] if said else "", re.IGNORECASE):
            reading.blocks.append(Block(text=": ".join(said) + ".", section=("Back matter", said[0])))
    for trial in article.findall("./{*}front//{*}related-object"):
        number = trial.get("document-id") or trial.get("object-id") or ""
        text = " ".join(filter(None, (trial.get("source-id"), _words(trial), number)))
        reading.blocks.append(Block(text=f"Trial registration: {text}.", section=("Back matter", "Trial registration")))
    for notes in article.findall("./{*}front//{*}author-notes") + article.findall("./{*}front/{*}notes"):
        _walk_jats(notes, ("Back matter",), reading)
    for back in article.findall("./{*}back"):
        _walk_jats(back, ("Back matter",), reading)
    for name, said in _JATS_NOT_READ.items():
        if count := len(article.findall(f".//{{*}}{name}")):
            reading.warnings.append(f"{count} {said}")
    return reading


_JATS_NOT_READ = {
    "fig": "figures: captions were read, pictures were not.",
    "table": "tables: captions and rows of words were read, rows of numbers were not.",
    "sub-article": "sub-articles (letters, translations, reviews) were not read.",
    "supplementary-material": "supplements were recognised and not read.",
    "ref": "references were recognised and left out.",
}


def _tag(node) -> str:
    return node.tag.rpartition("}")[2] if node is not None and isinstance(node.tag, str) else ""


_NOT_WORDS = frozenset(("table", "graphic", "fn", "fig", "table-wrap", "inline-formula", "disp-formula", "media"))


def _words(node) -> str:
    """Text of a paragraph or title; marks of citations stay, as they do in the corpora."""
    return " ".join(_raw_words(node).split())


def _raw_words(node) -> str:
    parts: list[str] = [node.text or ""]
    for child in node:
        if _tag(child) not in _NOT_WORDS:
            parts.append(_raw_words(child))
        parts.append(child.tail or "")
    return "".join(parts)


def _walk_jats(node, path: tuple[str, ...], reading: Reading) -> None:
    for child in node:
        name = _tag(child)
        if name in ("sec", "ack", "app", "fn-group", "notes", "glossary", "boxed-text"):
            title = child.find("./{*}title")
            header = _words(title) if title is not None else ("Acknowledgements" if name == "ack" else "")
            inner = (*path, header) if header else path
            if header:
                reading.blocks.append(Block(text=header, section=inner))
            _walk_jats(child, inner, reading)
        elif name == "p":
            reading.blocks.append(Block(text=_words(child), section=path))
            for figure in child:
                if _tag(figure) in ("fig", "table-wrap"):
                    _read_caption(figure, path, reading)
        elif name in ("fig", "table-wrap"):
            _read_caption(child, path, reading)
        elif name == "def-item":
            parts = [_words(part) for part in child if _tag(part) in ("term", "def")]
            reading.blocks.append(Block(text=": ".join(parts), section=path))
        elif name in ("fig-group", "fn", "list", "list-item", "disp-quote", "sec-meta", "def-list"):
            _walk_jats(child, path, reading)


def _read_caption(node, path: tuple[str, ...], reading: Reading) -> None:
    label, caption = node.find("./{*}label"), node.find("./{*}caption")
    text = " ".join("".join(part.itertext()) for part in (label, caption) if part is not None)
    if text.strip():
        reading.blocks.append(Block(text=text, section=path))
    for row in node.iter("{*}tr"):
        add_row([_words(cell) for cell in row], reading, path)
