"""Checkpoints of a run of EM: files from which it goes on after an interruption."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pyro_regimes.files import file_name, replacing
from pyro_regimes.infer.em.ascent import Held, agree
from pyro_regimes.infer.em.loop import Loop
from pyro_regimes.infer.em.problem import Array, Params, TensorState
from pyro_regimes.infer.em.ranks import Ranks
from pyro_regimes.infer.em.session import Session
from pyro_regimes.messages import shown

#: Of the format of the file.
_VERSION = 1


class Saved(NamedTuple):
    """The state of a run after some step."""

    params: Params
    leaves: Params  #: as the store holds those that are positive definite
    losses: Array  #: ``(num_steps + 1, R)``
    frozen: Held
    settled_at: Any  #: the step in which a restart converged, or -1, ``(R,)``
    num_e_steps: int


class Checkpoint:
    """The file of a run. In a process group, the first rank alone reads and writes it.

    :param path: the file; if it is there, the run goes on from it.
    :param every: the number of steps from one writing to the next.
    :raises ValueError: if an argument is not valid, or the file is no checkpoint.
    """

    def __init__(self, path: str | os.PathLike[str], every: int, ranks: Ranks | None) -> None:
        if isinstance(every, bool) or not isinstance(every, Integral) or every < 1:
            raise ValueError(
                f"expected checkpoint_every to be an integer of at least 1, got {shown(every)}"
            )
        self._path: Path = file_name("checkpoint", path)
        self._every: int = int(every)
        self._writes: bool = ranks is None or ranks.is_first
        found = _read(self._path) if self._writes else None
        if ranks is not None:
            found = ranks.objects(found)[0]
        if isinstance(found, str):
            raise ValueError(found)
        self._saved: Saved | None = found

    def restore(self, session: Session, state: TensorState, read: Callable[[], Any]) -> Any:
        """Write the parameters of the file to the store, and run the model again.

        :param state: that of a run of the model.
        :param read: runs the model.
        :return: what ``read`` returns; None if there is no file.
        :raises ValueError: if the file is of another model.
        """
        if self._saved is None:
            return None
        saved = self._saved
        for name, value in state.params.items():
            if name not in saved.params or saved.params[name].shape != value.shape:
                self._refuse(f"parameter {name!r} is another one")
        self._saved = saved = saved._replace(
            params={name: saved.params[name].to(value) for name, value in state.params.items()},
            leaves={name: saved.leaves[name].to(value) for name, value in state.leaves.items()},
        )
        session.write(saved.params, saved.leaves)
        found = read()
        session.frozen = saved.frozen
        return found

    def attach(self, loop: Loop) -> None:
        """Let a loop go on from the file, and write it.

        :raises ValueError: if the file is of other data.
        """
        loop.checkpoint = self.write
        if self._saved is None:
            return
        last = self._saved.losses[-1]
        own = loop.now.losses
        if own.shape != last.shape or not agree(loop.now.params, last, own).all():
            self._refuse(f"the losses at its parameters are {last.tolist()}, not {own.tolist()}")
        loop.resume(self._saved.losses, self._saved.settled_at, self._saved.num_e_steps)

    def write(self, loop: Loop, is_last: bool) -> None:
        """Write the state of a loop, if it is time for it."""
        if not self._writes or not (is_last or loop.num_steps % self._every == 0):
            return
        ascent = loop.ascent
        content = {
            "version": _VERSION,
            "params": _on_cpu(loop.now.params),
            "leaves": _on_cpu(loop.now.leaves),
            "losses": torch.from_numpy(np.stack(loop.all_losses)),
            "frozen": {name: torch.from_numpy(flags) for name, flags in ascent.frozen.items()},
            "settled_at": torch.from_numpy(np.asarray(ascent.settled_at)),
            "num_e_steps": ascent.num_e_steps,
        }
        with replacing(self._path) as (temporary,), open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())

    def _refuse(self, why: str) -> None:
        raise ValueError(
            f"expected {self._path} to be a checkpoint of this model and these data, but {why}: "
            "give another path, or remove the file to start anew"
        )


def _read(path: Path) -> Saved | str | None:
    """The content of a file; None if it is not there, and why it is none otherwise."""
    if not path.exists():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        if found["version"] != _VERSION:
            return f"expected {path} to be of version {_VERSION}, got {found['version']}"
        return Saved(
            found["params"],
            found["leaves"],
            found["losses"].numpy(),
            {name: flags.numpy() for name, flags in found["frozen"].items()},
            found["settled_at"].numpy(),
            int(found["num_e_steps"]),
        )
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
        return f"expected {path} to be a checkpoint of EM.run, got another file ({error})"


def _on_cpu(tensors: Params) -> Params:
    return {name: value.detach().cpu().clone() for name, value in tensors.items()}
