"""The picture of `serve` in the README: docs/serve.png, from a real browser.

python benchmarks/screenshot.py [--base MODEL] [--tuned checkpoints/job-skills] [--out FILE]

Encodes the example's corpus with both models (`make demo` makes the second), serves them side by
side, types a query in Chromium and takes what it shows. Needs the extra [dev] and Chromium."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "minilm_retriever"]
CORPUS = ROOT / "examples/job_skills/corpus.csv"
QUERY = "takes pictures of the inside of your body"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="checkpoints/all-MiniLM-L6-v2")
    parser.add_argument("--tuned", default="checkpoints/job-skills")
    parser.add_argument("--out", default=str(ROOT / "docs/serve.png"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = {"before": args.base, "after": args.tuned}
        folders = [str(Path(folder) / name) for name in models]
        for made, model in zip(folders, models.values(), strict=True):
            encode = [*COMMAND, "encode", str(CORPUS), "--text", "skills", "--id", "title"]
            subprocess.run([*encode, "--model", model, "--out", made], check=True, cwd=ROOT)
        serve = [*COMMAND, "serve", *folders, "--port", "0"]
        serve += ["--model", args.base, "--model", args.tuned]
        with subprocess.Popen(serve, cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
            try:
                assert server.stderr
                address = server.stderr.readline().split("serving at ")[1].split()[0]
                shoot(address, args.out)
            finally:
                server.terminate()


def shoot(address: str, out: str) -> None:
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(viewport={"width": 1180, "height": 700})
        page.goto(address)
        page.fill("#q", QUERY)
        page.wait_for_selector("mark", timeout=60_000)
        page.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    main()
