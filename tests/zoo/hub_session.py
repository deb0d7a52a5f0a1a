"""What `test_hub` runs in a process of its own, because the hub's client reads its settings when it is imported."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main(root: Path, home: Path) -> dict[str, object]:
    from zoo.hub_server import serve

    first, second = "a" * 40, "b" * 40
    commits = {"main": first, "v1": first}
    server, seen = serve(root, commits)
    os.environ |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(home / "hf"),
        "CTFOUNDRY_CACHE": str(home / "ours"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    os.environ.pop("HF_HUB_OFFLINE", None)
    import torch

    from ctfoundry import zoo
    from ctfoundry.errors import CTFoundryError
    from ctfoundry.zoo import hub

    torch.set_num_threads(1)
    name = "hf://owner/tiny"
    encoder = zoo.load_encoder(name, device="cpu")
    result: dict[str, object] = {
        "card": dict(encoder.card.source),
        "sha256": encoder.card.sha256,
        "requests": len(seen),
    }
    commits["main"] = second  # the branch moves on; what was pinned stays
    result["again"] = zoo.load_encoder(name, device="cpu").card.sha256
    result["requests_again"] = len(seen)
    result["v1"] = zoo.load_encoder(name + "@v1", device="cpu").card.source["commit"]
    moved = zoo.convert(name, home / "moved")
    result["moved"] = moved.card.source["commit"]
    result["file"] = zoo.convert("hf://owner/other@v1/weights/net.pth", home / "file").card.name
    result["as"] = zoo.load_encoder("ct-fm-tiny", weights=name + "@v1", device="cpu").card.name
    errors = {}
    for wrong in ("hf://owner/none", "hf://owner/other@v1", "hf://owner/tiny@v1/missing.pth"):
        try:
            zoo.convert(wrong, home / "wrong")
        except CTFoundryError as error:
            errors[wrong] = str(error)
    hub.FILE_CAP_BYTES = 1000
    before = len(seen)
    try:
        hub.fetch(hub.parse("hf://owner/big@v1"))
    except CTFoundryError as error:
        errors["big"] = str(error)
    result["fetched_of_big"] = [line for line in seen[before:] if line.startswith("GET")]
    result["errors"] = errors
    # the corrupted copy of what was pinned
    (weights,) = (home / "ours/models/owner--tiny").glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    try:
        zoo.load_encoder(name, device="cpu")
    except CTFoundryError as error:
        result["changed"] = str(error)
    server.shutdown()
    return result


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
