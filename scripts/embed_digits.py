"""Write the embedded data set, `src/normlab/data/digits.npz`, from the copy that scikit-learn distributes.

Run once, by hand: `python scripts/embed_digits.py`. The images keep their order and their values, 0 to 16.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TARGET = Path(__file__).parents[1] / "src" / "normlab" / "data" / "digits.npz"


def main() -> None:
    pixels, labels = load_digits(return_X_y=True)
    values = pixels.astype(np.uint8).reshape(-1, 8, 8)
    assert (values.reshape(pixels.shape) == pixels).all()
    np.savez_compressed(TARGET, values=values, labels=labels.astype(np.uint8))
    print(f"{TARGET}: {len(values)} images, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
