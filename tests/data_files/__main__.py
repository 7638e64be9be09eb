"""Writes the table of docs/data.md anew."""

from tests.data_files import BEGIN, DOCUMENT, END, markdown

before, rest = DOCUMENT.read_text("utf-8").split(BEGIN)
DOCUMENT.write_text(before + BEGIN + markdown() + END + rest.split(END)[1], "utf-8")
