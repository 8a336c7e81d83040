"""A program for tests: bases and responses on 1, 3 and 8 devices, which are made of one CPU."""

import hashlib
import json

import jax
import numpy as np

from probex_jax.fitting.strips import Strips
from probex_jax.fitting.tucker import bases, responses

N, H, W = 40, 24, 20
COUNTS = (1, 3, 8)


def main():
    jax.config.update("jax_num_cpu_devices", max(COUNTS))
    rng = np.random.default_rng(0)
    x, solution = rng.normal(size=(N, H, W)).astype(np.float32), rng.normal(size=(N, 2))
    found: dict[str, list] = {"digests": [], "devices with strips": []}
    for count in COUNTS:
        devices = jax.devices()[:count]
        # Eight strips of three rows.
        strips = Strips(lambda: [x], N, (H, W), strip_bytes=3 * 4 * N * W, devices=devices)
        each = bases(strips, [solution], 6, 5)
        digest = hashlib.sha256()
        for array in (strips.kernel(), *each[0], responses(strips, each)):
            digest.update(np.ascontiguousarray(array).tobytes())
        found["digests"].append(digest.hexdigest())
        used = {device for strip in strips for device in strip.devices()}
        found["devices with strips"].append(len(used))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
