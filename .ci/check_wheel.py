"""Says whether a wheel holds the packages, whole, and nothing else: check_wheel.py WHEEL."""

import pathlib
import sys
import zipfile

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("gam_jax", "sharding", "experiments")


def main(wheel: str) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".css", ".html", ".json", ".toml") or path.name == "py.typed"
    }
    if names != wanted:
        sys.exit(f"too much: {sorted(names - wanted)}; missing: {sorted(wanted - names)}")
    print(f"{len(names)} files, as they should be")


if __name__ == "__main__":
    main(sys.argv[1])
