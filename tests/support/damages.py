"""Ways to damage a synthetic set."""


def damages(folder, rng):
    """Makes one random change to a random file; returns a description of it."""
    every = sorted(path for path in folder.rglob("*") if path.is_file())
    paths = [path for path in every if ".lock" not in path.name]
    path = paths[rng.integers(len(paths))]
    kind = rng.choice(["flip", "flip", "truncate", "delete"])
    if kind == "delete":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        if kind == "flip":
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        else:
            del data[rng.integers(len(data)) :]
        path.write_bytes(data)
    return f"{kind} {path.name}"
