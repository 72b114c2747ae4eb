"""What the races of several programs have in common: the picture, turns, and the file that they leave behind (`knet race 1`)."""
import json
import os
import statistics

import cv2
import numpy as np

from said import said

#: Parts of a frame that are raced, and what they are called.
PARTS = {"network": "network", "total": "end to end"}


def synthetic(height, width):
    """The picture that `knet bench` times (src/bin/knet/bench.rs): uint8 RGB, large and small structure."""
    y, x, c = (np.arange(n, dtype=np.float32) for n in (height, width, 3))
    wave = np.sin(x[None, :, None] / np.float32(37) + c[None, None]) + np.cos(y[:, None, None] / np.float32(23))
    with np.errstate(over="ignore"):
        i = np.arange(height * width * 3, dtype=np.uint64) * np.uint64(2654435761)
    noise = ((i >> np.uint64(13)) % np.uint64(56)).astype(np.float32).reshape(height, width, 3)
    return (np.float32(100) + wave * np.float32(50) + noise).astype(np.uint8)


def write_png(path, image):
    """Writes a uint8 RGB image."""
    cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def in_turn(racers, rounds, say=print):
    """({name: [{phase: ms}, ...]}, load averages): `racers` are callables by name, all in turn, the order reversed every round."""
    rows, loads = {name: [] for name in racers}, []
    for r in range(rounds):
        loads.append(os.getloadavg()[0])
        for name in list(racers) if r % 2 == 0 else list(racers)[::-1]:
            rows[name].append(racers[name]())
            say(f"  round {r + 1} {name:42} " + "  ".join(f"{part} {rows[name][-1][part]:9.1f}" for part in PARTS) + "  ms", flush=True)
    return rows, loads


def races(title, size, threads, entries, rows):
    """A race for each part. `entries` are what is said of a racer, by its name in `rows`; knet comes first, then the fastest.

    CPU time is of all threads for a frame, where a racer's rows have it as `cpu`: what other work on the machine disturbs least.
    """
    out = []
    for part, words in PARTS.items():
        seconds = {name: [row[part] / 1e3 for row in rows[name]] for name in rows}
        middle = {name: statistics.median(values) for name, values in seconds.items()}
        order = sorted(rows, key=lambda name: (entries[name]["program"] != "knet", middle[name]))
        listed = [{**entries[name], "seconds": round(middle[name], 6), "rounds": [round(s, 6) for s in seconds[name]]} for name in order]
        for name, entry in zip(order, listed):
            if part == "total" and all("cpu" in row for row in rows[name]):
                entry["cpu_seconds"] = round(statistics.median(row["cpu"] for row in rows[name]) / 1e3, 6)
        out.append({"title": f"{title}, {size[0]}x{size[1]}, {words}", "size": list(size), "part": words, "threads": threads, "entries": listed})
    return out


def show(race):
    """Prints a race."""
    first, cpu = (race["entries"][0].get(key) for key in ("seconds", "cpu_seconds"))
    print(race["title"])
    for entry in race["entries"]:
        low, high = min(entry["rounds"]), max(entry["rounds"])
        print(f"  {entry['label']:42} {1e3 * entry['seconds']:9.1f} ms ({1e3 * low:.1f} to {1e3 * high:.1f})  {entry['seconds'] / first:.2f}"
              + (f"  CPU {1e3 * entry['cpu_seconds']:9.1f} ms  {entry['cpu_seconds'] / cpu:.2f}" if cpu and "cpu_seconds" in entry else ""))


def file(title, found, loads, threads, versions, note, commit=None):
    """The result of a run in the form of benches/results/README.md."""
    about = said(threads, loads, versions, commit)
    return {"form": "knet race 1", "subject": "programs", "title": title, **about, "note": note, "races": found}


def write(path, data):
    """Writes a result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n")
    print(f"{path}: {len(data['races'])} races")
