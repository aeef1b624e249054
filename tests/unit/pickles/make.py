"""Makes the pickles of this folder: `PYTHON make.py NAME`, by any Python from 2.7 on with any NumPy.

The rows are those of `tests/unit/test_pickles.py`: four keys of two classes, and embeddings 0, ¼, ½ … in float32.
"""

import pickle
import sys

import numpy as np

keys = ["0-n01-n01_1.JPEG", "1-n02-n02_7.JPEG", "2-n01-n01_2.JPEG", "3-n02-n02_3.JPEG"]
embeddings = np.arange(12, dtype="float32").reshape(4, 3) / 4

for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
    for form, value in (("array", np.array(keys)), ("list", keys), ("scalars", list(np.array(keys)))):
        # Protocols differ in how an array is written only from 2 to 5; 0 is text.
        if protocol in (0, 2, pickle.HIGHEST_PROTOCOL):
            with open("%s-protocol%d-%s.pkl" % (sys.argv[1], protocol, form), "wb") as file:
                pickle.dump({"embeddings": embeddings, "keys": value}, file, protocol)
