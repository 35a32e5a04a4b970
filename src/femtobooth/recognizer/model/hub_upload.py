"""A model folder to the Hugging Face hub, where someone asked for it: private unless they say otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...core.errors import FemtoboothError, InputError, SettingsError, first_line

LOG_IN = "`hf auth login` with a token that may write, or set HF_TOKEN"


def check(repo: str, public: bool) -> None:
    """Refuse, before any work is done, what the hub would refuse after it; nothing is made there.

    Raises SettingsError for a name, for no token, and for a repository that is public though `public` was not said;
    InputError where the hub cannot be reached.
    """
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    api = _api()
    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise HFValidationError("its form is OWNER/NAME")
    except HFValidationError as error:
        raise SettingsError(f"`push={repo}`: no name for a model ({first_line(error)})", "give OWNER/NAME") from None
    with _told(repo):
        try:
            api.whoami(token=True)
        except LocalTokenNotFoundError:
            raise SettingsError(f"`push={repo}`: nobody is logged in to the hub", LOG_IN) from None
        try:
            known = api.repo_info(repo, token=True)
        except RepositoryNotFoundError:
            return
    if known.private is False and not public:
        raise SettingsError(
            f"`push={repo}`: is public on the hub", "add `public=true` if the model may be seen by all, or another name"
        )


def push(folder: Path, repo: str, public: bool) -> str:
    """Make the repository if it is not there, and put the folder's files into it in one commit; returns its address.

    Raises InputError where the hub refuses or cannot be reached.
    """
    api = _api()
    with _told(repo, folder):
        made = api.create_repo(repo, private=not public, exist_ok=True, token=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="femtobooth", token=True)
        return str(made)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="femtobooth")


@contextmanager
def _told(repo: str, folder: Path | None = None) -> Iterator[None]:
    try:
        yield
    except FemtoboothError:
        raise
    except Exception as error:  # of network, hub and disk, in several libraries
        status = getattr(getattr(error, "response", None), "status_code", None)
        way_out = f"it is in {folder}; `hf upload {repo} {folder} --private` sends it" if folder else LOG_IN
        if status in (401, 403):
            raise InputError(f"`push={repo}`: the hub does not let you write there ({status})", way_out) from None
        if status is None and folder is None:
            way_out = f"leave it out; later, `hf upload {repo} RUN/model --private` sends the model"
        raise InputError(f"`push={repo}`: the hub cannot be reached ({first_line(error)})", way_out) from None
