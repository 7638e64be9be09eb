"""A command in this process, and what it leaves."""

from __future__ import annotations

from minilm_retriever.__main__ import main

GOOD = (
    b"sentence_0,sentence_1\ncooks meals,bread and soup\nmends pipes,plumbing\nnurses people,care\n"
)


def run(capsys, *argv):
    """(exit status, stdout, lines on stderr) of a command."""
    try:
        status = main([str(word) for word in argv])
    except SystemExit as left:  # argparse's own
        status = left.code
    out, err = capsys.readouterr()
    return status, out, err.splitlines()


def left_in(folder):
    """Names in a folder."""
    return sorted(p.name for p in folder.iterdir())
