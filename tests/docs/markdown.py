"""Pages of the repository, and what stands in them: links, headings, code."""

import re
import subprocess
import unicodedata
from pathlib import Path

ROOT = Path(__file__).parents[2]

_FENCED = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[^\n]*$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^ {4}[^\n]*\n(?:[ \t]*\n)*)+", re.MULTILINE)
_INLINE = re.compile(r"(`+)(.+?)\1", re.DOTALL)


def pages():
    """All pages that git knows or would take, from the root of the repository."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted(name for name in names.split("\0") if name and (ROOT / name).exists())


def prose(text):
    """Without code, where brackets are no links and `#` is no heading."""
    return _INLINE.sub("", _FENCED.sub("", text))


def links(text):
    """Where links and pictures lead."""
    found = re.findall(
        r"\]\(\s*<?([^()\s>]+(?:\([^()\s]*\))?)>?(?:\s+\"[^\"]*\")?\s*\)", prose(text)
    )
    found += re.findall(r"^\[[^\]]+\]:\s*<?(\S+?)>?\s*$", prose(text), re.MULTILINE)
    return found + re.findall(r"<(?:img|a|source)\b[^>]*?\b(?:src|href)=\"([^\"]+)\"", prose(text))


def anchors(text):
    """What a link to a place in the page may name, as GitHub makes it of headings."""
    found, seen = set(), {}
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", _FENCED.sub("", text), re.MULTILINE):
        heading = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        kept = [c for c in heading.lower() if c in " -_" or unicodedata.category(c)[0] in "LN"]
        slug = "".join(kept).replace(" ", "-")
        seen[slug] = seen.get(slug, -1) + 1
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
    return found | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))


def blocks(text):
    """Code in blocks, as (language, code); indented ones have no language."""
    fenced = _FENCED.findall(text)
    rest = _FENCED.sub("", text)
    return fenced + [("", re.sub(r"^ {4}", "", b, flags=re.M)) for b in _INDENTED.findall(rest)]


def snippets(text):
    """Code within lines, and code in blocks, each as it stands."""
    inline = [code for _, code in _INLINE.findall(_FENCED.sub("", text))]
    return [*inline, *(code for _, code in blocks(text))]


def files(text):
    """Files that a page has its reader write, by path: blocks with a title."""
    return dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```', text, re.MULTILINE | re.DOTALL))
