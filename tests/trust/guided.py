"""Damage that looks for new ways through the readers: `python -m tests.trust.guided FORMAT SECONDS FOLDER`.

libFuzzer keeps what reaches new branches and goes on from there (atheris). Ends with 0, or with libFuzzer's report of
the first file that ended neither in what it holds nor in a sentence; the file is left in FOLDER.
"""

import sys
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["shapespace.io", "shapespace.data", "shapespace.training.run", "shapespace.space", "trimesh.exchange"]
):
    from tests.trust.test_fuzz import FORMATS, SECONDS


def main(name: str, seconds: str, folder: str) -> None:
    """Damage the files of one format for so many seconds."""
    warnings.simplefilter("ignore")
    form, place = FORMATS[name], Path(folder)
    corpus, path = place / "corpus", place / form.file
    corpus.mkdir(parents=True, exist_ok=True)
    form.write(path)
    (corpus / "whole").write_bytes(path.read_bytes())

    def read(data: bytes) -> None:
        path.write_bytes(data)
        try:
            form.read(path)
        except (ValueError, OSError) as error:
            if str(path) not in str(error) or "\n" in str(error):
                raise AssertionError(f"no sentence that names the file: {error}") from error

    options = [f"-max_total_time={seconds}", f"-timeout={SECONDS}", f"-artifact_prefix={place}/", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
