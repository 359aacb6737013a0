"Writes the files that the field publishes, with weights of our own: pickles are made here and loaded nowhere."

import argparse
import contextlib
import pickle
import sys
import zlib
from collections import OrderedDict
from types import ModuleType

import numpy as np
import torch

from stitch_nb.generator import fir_kernel

SOURCE = "import torch\nfrom torch_utils import persistence\n\n@persistence.persistent_class\nclass Generator(torch.nn.Module):\n    def forward(self, z): return self.eval()\n"


def formula(key, entry, seed=0):
    "One entry of a golden state dict; None for those that the module brings itself."
    kind, *rest = entry["fill"]
    if kind == "keep":
        return None
    n = (
        np.random.default_rng(zlib.crc32(key.encode()) + seed)
        .standard_normal(entry["shape"])
        .astype("float32")
    )
    return torch.from_numpy(
        np.asarray(np.float32(rest[0]) + np.float32(rest[1]) * (np.abs(n) if kind == "a" else n))
    )


def filled(table):
    "A golden state dict; what a module brings itself is the low-pass, or a count of batches."
    own = lambda k, e: (
        torch.tensor(0)
        if k.endswith("num_batches_tracked")
        else fir_kernel() * (4 if k.endswith("kernel") else 1)
    )
    state = {}
    for k, e in table.items():
        v = formula(k, e)
        state[k] = own(k, e) if v is None else v
        assert list(state[k].shape) == e["shape"] and abs(
            state[k].double().sum().item() - e["sum"]
        ) <= 1e-3 * max(1, abs(e["sum"])), k
    return state


@contextlib.contextmanager
def fake_modules():
    "The modules that NVIDIA's pickles name, as far as writing needs them."
    names = (
        "torch_utils",
        "torch_utils.persistence",
        "dnnlib",
        "dnnlib.util",
        "dnnlib.tflib",
        "dnnlib.tflib.network",
    )
    kept = {n: sys.modules.get(n) for n in names}
    made = {n: ModuleType(n) for n in names}
    sys.modules.update(made)
    for f in (_reconstruct_persistent_obj,):
        made[f.__module__].__dict__[f.__name__] = f
    for c in (EasyDict, Network):
        made[c.__module__].__dict__[c.__name__] = c
    try:
        yield
    finally:
        for n, m in kept.items():
            if m is None:
                del sys.modules[n]
            else:
                sys.modules[n] = m


def _reconstruct_persistent_obj(meta):
    raise AssertionError("a pickle was run")


class EasyDict(dict):
    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Network:
    pass


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
EasyDict.__module__, Network.__module__ = "dnnlib.util", "dnnlib.tflib.network"


class Layer:
    "Pickled as NVIDIA's persistent classes are."

    def __init__(self, name, state, source=SOURCE):
        self.name, self.state, self.source = name, state, source

    def __reduce__(self):
        return _reconstruct_persistent_obj, (
            dict(
                type="class",
                version=6,
                module_src=self.source,
                class_name=self.name,
                state=self.state,
            ),
        )


BUFFERS = ("resample_filter", "noise_const", "w_avg")


def ada_module(state, config, source=SOURCE, **attributes):
    "A generator's tree of persistent layers; `attributes` override those of the synthesis layers."

    def module(prefix, name):
        m = torch.nn.Module()
        inside = OrderedDict()
        for k, v in state.items():
            if not k.startswith(prefix):
                continue
            head, _, rest = k[len(prefix) :].partition(".")
            if rest:
                inside.setdefault(head, None)
            elif head in BUFFERS:
                m.register_buffer(head, v)
            else:
                m.register_parameter(
                    head, torch.nn.Parameter(v, requires_grad=v.is_floating_point())
                )
        attrs = dict(m.__dict__)
        children = OrderedDict((head, module(f"{prefix}{head}.", head)) for head in inside)
        attrs["_modules"] = children
        attrs["_backward_hooks"] = OrderedDict()
        if name.startswith("fc"):
            attrs |= dict(
                activation="lrelu", weight_gain=0.01 / np.sqrt(config["w_dim"]), bias_gain=0.01
            )
        if name.startswith("conv"):
            attrs |= (
                dict(
                    activation="lrelu",
                    use_noise=True,
                    conv_clamp=config.get("conv_clamp"),
                    act_gain=np.sqrt(2),
                    padding=1,
                )
                | attributes
            )
        if name.startswith("torgb"):
            attrs |= dict(conv_clamp=config.get("conv_clamp"), weight_gain=np.float64(0.04))
        if name.startswith("b") and name[1:].isdigit():
            attrs |= dict(
                architecture="skip", use_fp16=False, resolution=int(name[1:]), img_channels=3
            ) | {k: v for k, v in attributes.items() if k == "architecture"}
        if name == "Generator":
            attrs |= dict(
                _init_args=(),
                _init_kwargs=EasyDict(
                    c_dim=0,
                    z_dim=config["z_dim"],
                    synthesis_kwargs=EasyDict(channel_base=config["channel_base"]),
                ),
            )
        return Layer(
            "FullyConnectedLayer"
            if name.startswith("fc")
            else "SynthesisLayer"
            if name.startswith("conv")
            else name,
            attrs,
            source,
        )

    return module("", "Generator")


def write_ada(path, state, config, protocol=4, **kwargs):
    "NVIDIA's .pkl: a bare pickle, storages as torch streams inside of it."
    with fake_modules():
        G = ada_module(state, config, **kwargs)
        path.write_bytes(
            pickle.dumps(
                dict(
                    G_ema=G,
                    training_set_kwargs=EasyDict(path="ffhq.zip", use_labels=False),
                    augment_pipe=None,
                ),
                protocol,
            )
        )
    return path


def write_run(path, state, config, pivots, quads):
    "The authors' saved run."
    with fake_modules():
        torch.save(dict(generator=ada_module(state, config), pivots=pivots, quads=quads), path)
    return path


def write_tf(path, protocol=4):
    "NVIDIA's TensorFlow .pkl, in small: three networks, arrays in lists."
    net = Network()
    net.__dict__.update(
        version=4,
        static_kwargs=EasyDict(resolution=64),
        components=EasyDict(),
        build_module_src=SOURCE,
        variables=[("dlatent_avg", np.zeros(8, "float32"))],
    )
    with fake_modules():
        path.write_bytes(pickle.dumps((net, net, net), protocol))
    return path


def write_rosinality(path, state, average=None, zipped=True):
    "A training checkpoint, with all that comes with one."
    extra = dict(
        args=argparse.Namespace(size=64, path="ffhq", lr=0.002),
        g_optim=dict(
            state={0: dict(step=3, exp_avg=torch.zeros(3))},
            param_groups=[dict(lr=0.002, betas=(0.0, 0.99), params=[0])],
        ),
    )
    torch.save(
        dict(
            g_ema=OrderedDict(state),
            **extra,
            **({} if average is None else dict(latent_avg=average)),
        ),
        path,
        _use_new_zipfile_serialization=zipped,
    )
    return path


def write_e4e(path, encoder, average, decoder=None, opts=None):
    opts = dict(
        encoder_type="Encoder4Editing",
        stylegan_size=1024,
        start_from_latent_avg=True,
        device="cuda:0",
        checkpoint_path=None,
    ) | (opts or {})
    state = {f"encoder.{k}": v for k, v in encoder.items()} | {
        f"decoder.{k}": v for k, v in (decoder or {}).items()
    }
    torch.save(
        dict(state_dict=state, opts=opts) | ({} if average is None else dict(latent_avg=average)),
        path,
    )
    return path


def write_stats(path, mean, std, protocol=4):
    path.write_bytes(pickle.dumps([mean, std], protocol))
    return path


def write_pickle(path, value, protocol=4):
    "Anything; hostile ones too."
    path.write_bytes(pickle.dumps(value, protocol))
    return path
