"""Names for types that many rooms use; shapes of arrays are stated where they are used."""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Precision = Literal["fp32", "bf16"]  # the numbers that a model computes with
StrPath = str | os.PathLike[str]
