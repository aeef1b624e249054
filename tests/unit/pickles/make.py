"""Makes the pickles of this folder: `PYTHON make.py NAME FORM:PROTOCOL ...`, by any Python with any NumPy.

The rows are those that tests/unit/test_pickles.py expects: four keys of two classes, and embeddings 0, 1/4, 1/2 ...
in float32. The files that are here were made by

    python2.7 (NumPy 1.16.6)  make.py python2.7-numpy1.16 array:0 list:0 array:1 array:2 list:2 scalars:2 objects:2
    python3.6 (NumPy 1.13.3)  make.py python3.6-numpy1.13 array:2 scalars:4
    python3.8 (NumPy 1.24.4)  make.py python3.8-numpy1.24 array:5 objects:5
"""

import pickle
import sys

import numpy as np

keys = ["0-n01-n01_1.JPEG", "1-n02-n02_7.JPEG", "2-n01-n01_2.JPEG", "3-n02-n02_3.JPEG"]
embeddings = np.arange(12, dtype="float32").reshape(4, 3) / 4
forms = {
    "array": np.array(keys),
    "list": keys,
    "scalars": list(np.array(keys)),
    "objects": np.array(keys, dtype=object),
}

for wanted in sys.argv[2:]:
    form, protocol = wanted.split(":")
    with open(sys.argv[1] + "-" + form + "-protocol" + protocol + ".pkl", "wb") as file:
        pickle.dump({"embeddings": embeddings, "keys": forms[form]}, file, int(protocol))
