"""Writes tests/golden, the part of the golden numbers that the repository keeps, from the folder that has all of them.

python tools/golden.py FOLDER
"""

import gzip
import json
import sys
from pathlib import Path

import numpy as np

KEPT = Path(__file__).resolve().parent.parent / "tests" / "golden"
STEP = {  # every k-th number of arrays whose names begin so; everything else is kept whole
    "a1_gen_small": {"img_": 29, "grad_b16_conv0": 5},
    "a2_gen_1024": {"img_area64": 13, "styles_concat": 7, "patch_": 3},
    "b_rosinality64": {"img_": 29, "latents_": 7},
    "c_e4e": {"resize256": 61, "codes_": 13},
    "d_bisenet": {"logits": 31, "logits0_patch": 31},
    "e_alignment": {"crops256": 31, "crop1024_area64": 13, "paste_rgba": 127, "paste_mask_r": 127}
    | {"paste1024_mask": 127},
    "f_masks": {"border_1024": 31, "content_1024": 31, "full_1024_i10": 31, "naive_fore": 31},
    "g_morph": {"morphed_full": 7},
    "g_pti": {"imgs_": 29},
    "g_stitch": {"img_": 29},
    "h_edit": {"dirA_edited": 61, "dirB_edited": 61, "pivots_freeze8": 31, "small_img": 29}
    | {"small_styles": 7},
}
LEFT_OUT = {  # wanted only by tests that take minutes, or by none
    "a1_gen_small": ("style_is_conv",),
    "a2_gen_1024": ("style_is_conv",),
    "c_e4e": ("input_u8", "codes_batch2", "codes_raw", "codes_encoder", "codes_with", "decoder"),
    "g_pti": ("imgs_initial",),
    "g_stitch": ("w_edit",),
    "h_edit": ("w_1024", "styles_1024", "t2p_"),
}


def as_kept(name: str, array, steps: dict) -> tuple:
    "An array's name and numbers as they are kept; pictures as differences to the pixel at the left."
    k = next((k for begin, k in steps.items() if name.startswith(begin)), 1)
    if k > 1:
        return f"{name} every {k} of {'x'.join(map(str, array.shape))}", array.reshape(-1)[::k]
    if array.dtype == np.uint8 and array.ndim > 2 and array.shape[-1] == 3:
        planes = np.ascontiguousarray(np.moveaxis(array, -1, -3))
        return f"{name} differences", np.diff(planes, axis=-1, prepend=np.uint8(0))
    return name, array


def manifest(path: Path) -> dict:
    "Of the manifest: tolerances, constants, and the networks' entries with their fills and sums."
    whole = json.loads(path.read_text())
    fixtures = {
        name: dict(
            arrays={
                k: dict(suggested_atol=v["suggested_atol"])
                for k, v in fixture["arrays"].items()
                if v.get("suggested_atol") is not None
            },
            meta={k: v for k, v in fixture["meta"].items() if "seconds" not in k},
        )
        for name, fixture in whole["fixtures"].items()
    }
    return dict(seed=whole["seed"], fixtures=fixtures, models=whole["models"])


def main(folder: Path):
    text = json.dumps(manifest(folder / "manifest.json"), separators=(",", ":"))
    (KEPT / "manifest.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    for name, steps in STEP.items():
        left_out = LEFT_OUT.get(name, ())
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            arrays = {k: file[k] for k in file.files if not k.startswith(left_out)}
        rows = dict(as_kept(k, v, steps) for k, v in arrays.items())
        np.savez_compressed(KEPT / f"{name}.npz", **rows)
        print(f"{name}.npz", (KEPT / f"{name}.npz").stat().st_size)
    print("in all", sum(p.stat().st_size for p in KEPT.iterdir()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
