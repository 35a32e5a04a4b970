"""A process that holds one of the compared models, so that its memory is its own and the models can take turns.

The process is this file run as a module. Each line on its stdin is a request (JSON), each line on its stdout an answer:
`advance` while it works, then `result` or `error`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from ...core import children, errors, machine
from ...core.errors import FemtoboothError
from .candidates import GENERATOR, Candidate

TURN = 0.1  # least seconds that a model computes when it is its turn


class Worker:
    """The parent's side; the process starts with the first request."""

    def __init__(self, candidate: Candidate, options: dict[str, Any]) -> None:
        """Keep what the process will be told; `options`: threads, device, sampling (of generators)."""
        self.candidate, self._options = candidate, options
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[bytes] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
        if self._errors:
            self._errors.close()

    def ask(self, what: str, bar: Any = None, **request: Any) -> Any:
        """Get the answer to one request. Raises what the model raised there; FemtoboothError if its process ended."""
        if self._process is None:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (it lives as long as the process)
            told = json.dumps([self.candidate.task, self.candidate.reference, self._options])
            self._process = subprocess.Popen(  # noqa: S603
                children.command("femtobooth.workflows.comparing.worker", told),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=children.environment(OMP_NUM_THREADS=str(self._options["threads"])),
            )
        to, back = self._process.stdin, self._process.stdout
        assert to is not None and back is not None  # noqa: S101  (they are pipes)
        try:
            to.write(json.dumps({"what": what, **request}) + "\n")
            to.flush()
        except BrokenPipeError:
            raise self._ended() from None
        for line in back:
            answer = json.loads(line)
            if "advance" in answer:
                if bar is not None:
                    bar.advance(answer["advance"])
            elif "error" in answer:
                raise getattr(errors, answer["error"])(answer["problem"], answer["way_out"])
            else:
                return answer["result"]
        raise self._ended()

    def _ended(self) -> FemtoboothError:
        assert self._process is not None and self._errors is not None  # noqa: S101
        self._process.wait()
        self._errors.seek(0)
        last = children.last_line(self._errors.read(), "killed, perhaps for want of memory")[:200]
        return FemtoboothError(f"{self.candidate.given}: its process ended with {self._process.returncode} ({last})")


# The child's side


class _Recognizer:
    def __init__(self, reference: str, threads: int, device: str, **_: Any) -> None:
        from ...recognizer.inference.engines import open_engine
        from ...recognizer.model.formats import exported

        self.threads = threads
        engine = "auto" if exported(reference) else "torch"  # a cached export would be another model than the one given
        self.engine = open_engine(reference, engine, threads, "auto" if engine == "auto" else device, trust=True)
        random = np.random.default_rng(0)
        self.pixels = random.integers(0, 256, (1, *self.engine.preprocess.size, 3), np.uint8)

    def facts(self) -> dict[str, Any]:
        described = self.engine.description
        main = described.labels.main
        return {
            "engine": self.engine.name,
            "parameters": described.parameters,
            "weights_hash": described.hash,
            "architecture": described.architecture,
            "names": list(described.labels.names[main]),
            "synsets": list(described.labels.synsets[main]) if described.labels.synsets else None,
            "groups": {name: end - start for name, (start, end) in described.labels.groups.items()},
            "several": bool(described.labels.free),
            "preprocess": described.preprocess.to_dict(),
            "temperature": described.temperature,
            "rejects": described.rejection is not None,
            "provenance": described.provenance,
            "outputs": sorted(self.engine.run(self.pixels)),
        }

    def once(self, batch: int) -> None:
        self.engine.run(np.repeat(self.pixels, batch, axis=0))

    def predict(self, advance: Callable[[int], None], paths: Sequence[str], file: str) -> list[str | None]:
        """Write logits (N, C) of the first group into `file` (.npy), nan for what cannot be read; for each
        path, why.
        """
        from ...recognizer.inference.predict import predict
        from ...recognizer.inference.sources import Source

        main, rows = self.engine.labels.main, []
        problems: list[str | None] = []
        for batch in predict(self.engine, (Source(path, path, found=False) for path in paths), 16, self.threads):
            good = np.array([error is None for error in batch.errors])
            logits = np.full((len(good), main.stop - main.start), np.nan, np.float32)
            if good.any():
                logits[good] = batch.outputs["logits"][:, main]
            rows.append(logits)
            problems += batch.errors
            advance(len(good))
        np.save(file, np.concatenate(rows))
        return problems


class _Generator:
    def __init__(self, reference: str, threads: int, device: str, sampling: dict[str, Any]) -> None:
        import torch

        from ...generator.load import load
        from ...generator.sampling import check
        from ...generator.sampling_settings import SamplingSettings

        torch.set_num_threads(threads)
        self.model, self.sampling = load(reference), SamplingSettings.model_validate(sampling)
        check(self.model, self.sampling)
        self.model.to(machine.device(device))

    def facts(self) -> dict[str, Any]:
        model = self.model
        parts = {name.replace("_", " "): part for name, part in {**model.trainable, "vae": model.vae}.items()}
        return {
            "engine": f"torch on {model.device}",
            "parameters": sum(tensor.numel() for part in parts.values() for tensor in part.parameters()),
            "parts": {name: sum(tensor.numel() for tensor in part.parameters()) for name, part in parts.items()},
            "weights_hash": model.hash,
            "size": model.size,
            "prediction": model.process.prediction_type,
            "tokens": int(model.tokenizer.model_max_length),
            "subject": model.subject,
            "readme": model.readme,
        }

    def once(self, batch: int) -> None:
        self._sample(["a picture"] * batch, [*range(batch)], batch)

    def _sample(self, prompts: list[str], seeds: list[int], batch: int) -> np.ndarray:
        from ...generator.sampling import sample

        return sample(self.model, prompts, seeds, self.sampling, batch_size=batch)

    def draw(self, advance: Callable[[int], None], jobs: Sequence[tuple[str, int, str]]) -> None:
        """Draw pictures by prompt, seed and file (.png); each is drawn alone, so that no other has a say in it."""
        from PIL import Image

        from ...core.files import atomic_file

        for prompt, seed, path in jobs:
            with atomic_file(Path(path)) as temporary:
                Image.fromarray(self._sample([prompt], [seed], 1)[0]).save(temporary, format="PNG")
            advance(1)


def _timed(once: Callable[[int], None], batch: int) -> float:
    """Measure the median seconds of as many calls as fill a turn."""
    taken: list[float] = []
    while sum(taken) < TURN:
        start = time.perf_counter()
        once(batch)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def _main(told: str) -> None:
    task, reference, options = json.loads(told)
    back = children.own_stdout("w")

    def answer(**value: Any) -> None:
        print(json.dumps(value), file=back, flush=True)

    model: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("what")
        try:
            if model is None:
                model = (_Generator if task == GENERATOR else _Recognizer)(reference, **options)
            if what == "facts":
                answer(result=model.facts())
            elif what == "time":
                answer(result=_timed(model.once, **request))
            elif what == "memory":
                answer(result=_memory(model, **request))
            else:
                answer(result=getattr(model, what)(lambda count: answer(advance=count), **request))
        except FemtoboothError as error:
            answer(error=type(error).__name__, problem=error.problem, way_out=error.way_out)


def _memory(model: Any, batches: Sequence[int]) -> dict[str, Any]:
    """Read the most bytes held after a batch of each size: of main memory, and of the accelerator's where the model is
    on one.
    """
    for batch in batches:
        model.once(batch)
    found: dict[str, Any] = {"main": machine.peak_memory(), "device": None}
    if isinstance(model, _Generator) and model.model.device.type == "cuda":
        import torch

        found["device"] = torch.cuda.max_memory_allocated(model.model.device)
    return found


if __name__ == "__main__":
    try:
        _main(sys.argv[1])
    except (KeyboardInterrupt, BrokenPipeError):
        os._exit(130)
