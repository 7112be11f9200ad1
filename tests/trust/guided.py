"""Coverage-guided fuzzing of the readers (atheris): `python -m tests.trust.guided FORMAT SECONDS FOLDER`.

Exits with 0, or with libFuzzer's report of the first file that was neither read nor refused with a message; that file
is in FOLDER.
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
    """Fuzz the reader of one format for this many seconds."""
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
                raise AssertionError(f"no message that names the file: {error}") from error

    options = [f"-max_total_time={seconds}", f"-timeout={SECONDS}", f"-artifact_prefix={place}/", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
