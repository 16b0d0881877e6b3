"""Wait until the API of the container stack serves, and say where everything is.

usage: python deploy/wait_ready.py [SECONDS]     (default: 900; the first start trains a model)
"""

import os
import re
import sys
import time
import urllib.request
from pathlib import Path


def main(patience_s: float) -> int:
    """0 once the API is ready, 1 when it took too long."""
    text = Path(".env").read_text(encoding="utf-8") if Path(".env").exists() else ""
    env = {**dict(re.findall(r"^(\w+)=(.*)$", text, re.M)), **os.environ}
    host = env.get("BIND") or "127.0.0.1"
    at = {name: f"http://{host}:{env.get(f'{name}_PORT') or port}" for name, port in PORTS.items()}
    begun, said = time.monotonic(), ""
    while time.monotonic() - begun < patience_s:
        try:
            urllib.request.urlopen(f"{at['API']}/readyz", timeout=2).close()
        except OSError as error:
            reason = "training the first model" if "503" in str(error) else "starting"
            if reason != said:
                print(f"{reason} …", flush=True)
            said = reason
            time.sleep(1)
            continue
        print(f"ready after {time.monotonic() - begun:.0f} s")
        print("\n".join(f"{name.lower():10} {url}" for name, url in at.items()))
        return 0
    print(f"not ready within {patience_s:g} s: see `make ps` and `make logs`", file=sys.stderr)
    return 1


PORTS = {"API": "8000", "MLFLOW": "5000", "PROMETHEUS": "9090"}

if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 900))
