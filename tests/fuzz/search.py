"""Search for files at which a reader breaks the rule of fuzzing.py: `make fuzz SECONDS=600`.

The search is guided by the coverage of mop_t5 and mop_lab if atheris is installed (`pip install atheris`), and blind
otherwise. Each new failure is printed, and its files are kept in build/fuzz. A finding becomes a test.
"""

import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from importlib.util import find_spec
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "helpers")]
FOUND = Path("build/fuzz")


class Search:
    """Tries contents of files, and keeps those at which a reader fails.

    Args:
        folder: A folder for the samples and their copies.
    """

    def __init__(self, folder: Path):
        import fuzzing

        self._fuzzing, self._folder, self._seen = fuzzing, folder, set()
        self.targets = [(name, file) for name, reader in fuzzing.READERS.items() for file in reader.files]
        for name, reader in fuzzing.READERS.items():
            self._valid(name).mkdir()
            reader.write(self._valid(name))

    def _valid(self, name: str) -> Path:
        return self._folder / name.replace(" ", "-")

    def content(self, target: int) -> bytes:
        name, file = self.targets[target]
        return (self._valid(name) / file).read_bytes()

    def attempt(self, target: int, content: bytes) -> None:
        name, file = self.targets[target]
        copy = self._folder / "mutated"
        try:
            self._fuzzing.try_content(self._fuzzing.READERS[name], self._valid(name), copy, file, content)
        except Exception as error:
            inner = error.__context__ if isinstance(error, AssertionError) and error.__context__ else error
            last = traceback.extract_tb(inner.__traceback__)[-1]
            failure = (name, type(inner).__name__, last.filename, last.lineno)
            if failure in self._seen:
                return
            self._seen.add(failure)
            kept = FOUND / f"{name.replace(' ', '-')}-{len(self._seen)}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(copy, kept)
            lines = traceback.format_exception(inner)
            (kept / "traceback.txt").write_text("".join(lines), errors="backslashreplace")
            said = f"{name}, {file}: {type(inner).__name__}: {str(inner)[:200]!r}, {last.filename}, line {last.lineno}"
            print(f"FOUND {said} -> {kept}", flush=True)


def blind(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        search, chance, end = Search(Path(folder)), random.Random(), time.monotonic() + seconds
        while time.monotonic() < end:
            target = chance.randrange(len(search.targets))
            search.attempt(target, search._fuzzing.mutated(search.content(target), chance))


def guided(seconds: float) -> None:
    import atheris

    with atheris.instrument_imports(include=["mop_t5", "mop_lab"]):
        import fuzzing
    folder = Path(tempfile.mkdtemp())
    search = Search(folder)
    (folder / "corpus").mkdir()
    for target in range(len(search.targets)):
        (folder / "corpus" / str(target)).write_bytes(bytes([target]) + search.content(target))

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if not data or data[0] >= len(search.targets) or chance.random() < 0.5:
            target = chance.randrange(len(search.targets))
            data = bytes([target]) + search.content(target)
        return (data[:1] + fuzzing.mutated(data[1:], chance))[:most]

    def try_data(data: bytes) -> None:
        if data and data[0] < len(search.targets):
            search.attempt(data[0], data[1:])

    options = [f"-max_total_time={int(seconds)}", "-max_len=200000", "-rss_limit_mb=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(folder / "corpus")], try_data, custom_mutator=mutate)
    atheris.Fuzz()  # ends the process


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    seconds = float(sys.argv[1])
    if "--child" in sys.argv:
        (guided if find_spec("atheris") else blind)(seconds)
        sys.exit()
    shutil.rmtree(FOUND, ignore_errors=True)
    FOUND.mkdir(parents=True)
    ended = subprocess.run([sys.executable, __file__, str(seconds), "--child"])
    found = sorted(path.name for path in FOUND.iterdir())
    print(f"{len(found)} findings in {FOUND}: {', '.join(found) or 'none'}")
    sys.exit(1 if found or ended.returncode else 0)
