"""Print what this project's layers add to the base image of `api`; fail beyond the limit.

usage: python deploy/image_size.py [LIMIT_MB]     (default: 260; a megabyte is 10^6 bytes)
"""

import json
import os
import subprocess
import sys

TAG = os.environ.get("TAG", "latest")


def inspect(image: str) -> dict[str, int | list[str]]:
    """Size in bytes and layers of an image."""
    command = ["docker", "image", "inspect", "-f", "[{{.Size}},{{json .RootFS.Layers}}]", image]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    size, layers = json.loads(done.stdout)
    return {"size": size, "layers": layers}


def main(limit_mb: float) -> int:
    """0 when `api` keeps the limit."""
    base = inspect("python:3.11-slim-bookworm")
    sizes = {}
    for name in ("api", "train", "proxy"):
        image = inspect(f"housing-mlops-{name}:{TAG}")
        assert image["layers"][: len(base["layers"])] == base["layers"], f"{name} has another base"
        sizes[name] = (image["size"] - base["size"]) / 1e6
        print(f"{name}: {sizes[name]:.0f} MB on a base of {base['size'] / 1e6:.0f} MB")
    if sizes["api"] > limit_mb:
        print(f"api is larger than {limit_mb:g} MB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 260))
