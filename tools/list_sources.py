"""Print the files of the pure-Python package ``tiltyard``, one a line, relative to the project's root.

meson wants a list of files; a glob in meson.build would not see new ones, and ``install_subdir`` would ship
``__pycache__``.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {".py", ".pyi", ".typed", ".mako", ".html", ".binpb"}


def main() -> None:
    package = ROOT / "services" / "tiltyard"
    for path in sorted(package.rglob("*")):
        if path.suffix in SUFFIXES or path.name == "py.typed":
            print(path.relative_to(ROOT).as_posix())


if __name__ == "__main__":
    main()
