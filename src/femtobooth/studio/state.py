"""What the studio knows while it runs: its folder, its jobs, runs, uploads and warm models, in one object.

FOLDER/NAME/           the runs, those made on the command line among them
FOLDER/models/         models that somebody put there
FOLDER/.studio/        what is the studio's own:
    jobs.sqlite        the queue
    jobs/ID/           settings, log, events and end of each job
    uploads/ID.png     pictures that were sent here, decoded and written anew
    drawn/             pictures of models that are no run's; those of runs lie in RUN/images/
    drafts/ID.json     subjects that are being prepared
    trash/             what was deleted
"""

from __future__ import annotations

from pathlib import Path

from ..core.files import sweep
from ..core.machine import size_in_bytes
from ..workflows.settings import StudioSettings
from .catalog import Catalog
from .desk import Desk
from .drafts import Drafts
from .drawing import Drawer
from .jobs import Jobs
from .library import Library
from .runner import Runner
from .uploads import Uploads


class Studio:
    """Everything that a request can ask for. Pages and the API have it as `request.app.state.studio`."""

    def __init__(
        self, settings: StudioSettings, host: str = "127.0.0.1", port: int = 8765, token: str | None = None
    ) -> None:
        self.settings, self.host, self.port, self.token = settings, host, port, token
        self.folder = Path(settings.folder).absolute()
        self.private = self.folder / ".studio"
        self.private.mkdir(parents=True, exist_ok=True)
        self.jobs = Jobs(self.private / "jobs.sqlite")
        self.library = Library(self.folder)
        self.uploads = Uploads(self.private)
        self.drafts = Drafts(self.private / "drafts")
        self.catalog = Catalog(self.library, self.uploads)
        self.runner = Runner(self.jobs, self.folder, self.private, settings.jobs)
        self.desk = Desk(self.jobs, self.runner, self.library, self.uploads, self.catalog, self.private)
        self.drawer = Drawer(self.desk, self.private, size_in_bytes(settings.memory))

    @property
    def names(self) -> list[str]:
        """Names under which others know this machine, beside its own."""
        return self.settings.names

    def begin(self) -> None:
        """Find out what became of jobs since the studio last ran, and go on with the queue."""
        sweep(self.uploads.folder)
        self.runner.begin()

    def end(self) -> None:
        """Let go of everything but the jobs that run, which go on."""
        self.runner.end()
        self.jobs.close()
