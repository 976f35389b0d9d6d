"""Patterns and paths as rules have them: text against text, and nothing of the machine is asked."""

from __future__ import annotations


def matches(pattern: str, text: str) -> bool:
    """`*` stands for any characters, `?` for one, a backslash takes the meaning of the next; in linear time but for the stars."""
    star = mark = -1
    p = t = 0
    while t < len(text):
        if p < len(pattern) and pattern[p] == "*":
            star, mark = p, t
            p += 1
            continue
        if p < len(pattern):
            if pattern[p] == "\\" and p + 1 < len(pattern):
                same, width = pattern[p + 1] == text[t], 2
            else:
                same, width = pattern[p] in ("?", text[t]), 1
            if same:
                p += width
                t += 1
                continue
        if star < 0:
            return False
        p, mark = star + 1, mark + 1
        t = mark
    return all(c == "*" for c in pattern[p:])


def is_pattern(text: str) -> bool:
    return any(c in text for c in "*?\\")


def beneath(folder: str, path: str) -> bool:
    """Whether the path is the folder's, or below it, by its text."""
    return folder == "/" or path == folder or path.startswith(folder + "/")
